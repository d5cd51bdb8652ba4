//! `flowvigil migrate`: makes and upgrades the tables that the settings name.

use std::process::ExitCode;

use anyhow::Context;

use super::SettingsArgs;
use crate::aws;
use crate::publish::dynamodb::schema::Schema;
use crate::publish::local::SqliteStore;

/// Arguments of `migrate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the settings come from.
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Do what is planned; without it, only the plan is shown
    #[arg(long)]
    pub apply: bool,
}

/// Shows what is to be done, and does it when told to.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let settings = args.settings.load()?;
    let Some(dynamodb) = settings.publish.dynamodb else {
        let path = settings.publish.sqlite.path;
        println!("{}: brought up to date whenever it is opened", path.display());
        if args.apply {
            if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                std::fs::create_dir_all(folder).with_context(|| format!("make folder {}", folder.display()))?;
            }
            SqliteStore::open(&path)?;
            println!("done");
        }
        return Ok(ExitCode::SUCCESS);
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        let schema = Schema::new(&aws::load().await, &dynamodb);
        let plan = schema.plan().await?;
        for step in &plan {
            println!("{step}");
        }
        match (plan.is_empty(), args.apply) {
            (true, _) => println!("everything is as it should be"),
            (false, false) => println!("nothing was changed; --apply does it"),
            (false, true) => {
                for step in &plan {
                    schema.apply(step).await?;
                    println!("done: {step}");
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}
