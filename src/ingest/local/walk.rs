//! Which files a list of paths means, and in which order they are read.
//!
//! Files of an S3 folder are read in the order of the time in their names, not of their paths: the layout sorts by account
//! and region first, and a day of one account after a day of another would be a day late.

use std::fs;
use std::path::{Path, PathBuf};

use crate::ingest::local::{ReadError, shown};

/// A file to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// `-` for standard input.
    pub(crate) path: PathBuf,
    /// Bytes; 0 when not known.
    pub(crate) size: u64,
    /// Whether somebody named this very file, rather than a folder above it.
    pub(crate) named: bool,
}

/// The files behind the paths, in reading order. A path that does not exist is an error.
pub(crate) fn find(paths: &[PathBuf]) -> Result<Vec<Found>, ReadError> {
    let mut found = Vec::new();
    for path in paths {
        if path == Path::new("-") {
            found.push(Found { path: path.clone(), size: 0, named: true });
            continue;
        }
        let failed = |cause| ReadError::Open { path: shown(path), cause };
        let about = fs::metadata(path).map_err(failed)?;
        if !about.is_dir() {
            found.push(Found { path: path.clone(), size: about.len(), named: true });
            continue;
        }
        let first = found.len();
        walk(path, &mut found).map_err(failed)?;
        found[first..].sort_by(|a, b| (stamp(&a.path), &a.path).cmp(&(stamp(&b.path), &b.path)));
    }
    Ok(found)
}

fn walk(folder: &Path, found: &mut Vec<Found>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        // A file that goes away while the folder is walked is none of ours.
        let Ok(about) = fs::metadata(&path) else { continue };
        if hidden || about.is_dir() && is_other_service(&path) {
            continue;
        }
        if about.is_dir() {
            walk(&path, found)?;
        } else if about.is_file() {
            found.push(Found { size: about.len(), path, named: false });
        }
    }
    Ok(())
}

/// `AWSLogs/<account>/<service>` of a service that is not flow logs (CloudTrail, load balancers, …).
fn is_other_service(folder: &Path) -> bool {
    let mut up = folder.iter().rev();
    let (service, _, top) = (up.next(), up.next(), up.next());
    let service = service.map(|name| name.as_encoded_bytes()).unwrap_or_default();
    top.is_some_and(|name| name == "AWSLogs") && !matches!(service, b"vpcflowlogs" | b"aws-service=vpcflowlogs")
}

/// The time in the name of an S3 object (`…_20220221T1955Z_…`); empty, and so first, where there is none.
fn stamp(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let is_stamp = |part: &&str| {
        let bytes = part.as_bytes();
        bytes.len() == 14 && bytes[8] == b'T' && bytes[13] == b'Z' && bytes[..8].iter().all(u8::is_ascii_digit)
    };
    name.split('_').find(is_stamp).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_s3_folder_is_read_in_the_order_of_time_over_accounts_and_without_other_services() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("AWSLogs");
        for name in [
            "222/vpcflowlogs/eu-west-2/2022/02/21/222_vpcflowlogs_eu-west-2_fl-0_20220221T1955Z_a.log.gz",
            "111/vpcflowlogs/eu-west-2/2022/02/21/111_vpcflowlogs_eu-west-2_fl-0_20220221T2000Z_a.log.gz",
            "111/vpcflowlogs/eu-west-2/2022/02/21/111_vpcflowlogs_eu-west-2_fl-0_20220221T1955Z_a.log.gz",
            "111/CloudTrail/eu-west-2/2022/02/21/x.json.gz",
            "111/vpcflowlogs/eu-west-2/2022/02/21/.hidden",
        ] {
            let path = base.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        let found = find(&[folder.path().to_owned()]).unwrap();
        let names: Vec<_> = found.iter().map(|f| f.path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(
            names,
            [
                "111_vpcflowlogs_eu-west-2_fl-0_20220221T1955Z_a.log.gz",
                "222_vpcflowlogs_eu-west-2_fl-0_20220221T1955Z_a.log.gz",
                "111_vpcflowlogs_eu-west-2_fl-0_20220221T2000Z_a.log.gz",
            ]
        );
        assert!(found.iter().all(|f| !f.named && f.size == 1));
    }

    #[test]
    fn a_path_that_does_not_exist_is_named() {
        let error = find(&["/nowhere/at/all.log".into()]).unwrap_err();
        assert!(error.to_string().starts_with("open /nowhere/at/all.log: "), "{error}");
    }
}
