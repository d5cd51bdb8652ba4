//! A detector snapshot of any bytes is restored or refused; what is restored can be written again.
#![no_main]

use flowvigil::flow::network::Network;
use flowvigil::settings::Settings;
use flowvigil::statistical::Engine;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let settings = Settings::defaults();
    let network = Network::new(&settings.network);
    if let Ok(engine) = Engine::restore(input, &settings.statistical, &network) {
        engine.snapshot();
    }
});
