use proptest::prelude::*;

use super::*;
use crate::ml::model::Source;
use crate::ml::model::tests::{MODEL, options, windows};
use crate::ml::train::train;

/// The archive with one of its files changed.
fn with(name: &str, change: impl Fn(Vec<u8>) -> Vec<u8>) -> Vec<u8> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (file, bytes) in files(&MODEL) {
        let bytes = if file == name { change(bytes) } else { bytes };
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, file, bytes.as_slice()).unwrap();
    }
    archive.into_inner().unwrap().finish().unwrap()
}

fn replaced(bytes: Vec<u8>, what: &str, by: &str) -> Vec<u8> {
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains(what), "{what}");
    text.replacen(what, by, 1).into_bytes()
}

#[test]
fn what_is_packed_is_unpacked_the_same() {
    // Not `assert_eq`: a model is long to print.
    assert!(unpack(&pack(&MODEL)).unwrap() == *MODEL);
    let folder = tempfile::tempdir().unwrap();
    write_folder(&MODEL, folder.path()).unwrap();
    assert!(read(folder.path()).unwrap() == *MODEL);
    let archive = folder.path().join("other").with_extension("tar.gz");
    write_whole(&archive, &pack(&MODEL)).unwrap();
    assert!(read(&archive).unwrap() == *MODEL);
}

#[test]
fn the_same_windows_and_seed_give_the_same_bytes() {
    let again = train(&windows(10, 4, 1), options(Source::Deployment), |_| ()).unwrap().0;
    assert!(pack(&again) == pack(&MODEL), "the archives differ");
    assert!(MODEL.manifest.model_version.starts_with("2023-11-18-"), "{}", MODEL.manifest.model_version);
}

#[test]
fn refusals_say_what_is_wrong() {
    let told = |bytes: Vec<u8>| unpack(&bytes).unwrap_err().to_string();
    let flipped = with(FOREST, |mut bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        bytes
    });
    assert_eq!(told(flipped), "model refused: forest.bin: its checksum is not the one in the manifest");
    let schema = with(MANIFEST, |b| replaced(b, "\"id\": \"hw27-v1\"", "\"id\": \"hw31-v2\""));
    assert_eq!(
        told(schema),
        "model refused: it was trained on features \"hw31-v2\", this version computes hw27-v1; train it again"
    );
    let order = with(MANIFEST, |b| replaced(b, "\"z_flows_in\"", "\"z_other\""));
    assert!(told(order).contains("in another order"));
    let format = with(MANIFEST, |b| replaced(b, "\"format\": 2", "\"format\": 9"));
    assert!(told(format).contains("this version reads 2"));
    let cut = pack(&MODEL)[..2_000].to_vec();
    assert!(told(cut).starts_with("model refused: "));
    assert!(told(Vec::new()).starts_with("model refused: "));
}

#[test]
fn a_stranger_in_the_archive_is_refused() {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let mut header = tar::Header::new_ustar();
    header.set_size(1);
    header.as_ustar_mut().unwrap().name[..14].copy_from_slice(b"../forest.bin\0");
    header.set_cksum();
    archive.append(&header, &b"x"[..]).unwrap();
    let told = unpack(&archive.into_inner().unwrap().finish().unwrap()).unwrap_err().to_string();
    assert!(told.contains("`../forest.bin` does not belong to a model"), "{told}");
}

#[test]
fn an_archive_that_unpacks_to_more_than_allowed_is_refused_before_it_fills_memory() {
    let bomb = with(FOREST, |_| vec![0; BYTES_MAX as usize + 1]);
    assert!(bomb.len() < 1 << 20);
    assert!(matches!(unpack(&bomb), Err(ArtifactError::TooLarge { file }) if file == FOREST));
}

#[test]
fn a_new_model_takes_over_and_a_damaged_one_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.tar.gz");
    write_whole(&path, &pack(&MODEL)).unwrap();
    let slot = Slot::new(read(&path).unwrap(), Some(path.clone()));
    assert!(!slot.reload().unwrap(), "the same version");
    write_whole(&path, &pack(&MODEL)[..500]).unwrap();
    assert!(slot.reload().is_err());
    assert_eq!(slot.model().manifest.model_version, MODEL.manifest.model_version);
    let mut other = MODEL.clone();
    other.manifest.data.to = other.manifest.data.to.plus(86_400);
    write_whole(&path, &pack(&other)).unwrap();
    let before = slot.model();
    assert!(slot.reload().unwrap());
    assert_ne!(slot.model().manifest.model_version, before.manifest.model_version);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_damage_is_a_panic_or_another_model(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = pack(&MODEL);
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(model) = unpack(&bytes) {
            prop_assert_eq!(model.manifest.files, MODEL.manifest.files.clone());
        }
    }
}

#[test]
fn the_embedded_model_is_sound_and_asks_for_the_deployments_agreement() {
    let model = embedded().unwrap();
    assert_eq!(model.manifest.source, Source::Simulation);
    assert!(EMBEDDED.len() < 400_000);
    assert!(pack(&model) == EMBEDDED, "it packs to other bytes than it was made of");
}
