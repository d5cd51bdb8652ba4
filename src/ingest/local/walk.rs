//! Which files a list of paths means. In which order their records are read is the work of [`merge`](super::merge).

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::flow::EventTime;
use crate::ingest::local::{ReadError, shown};

/// A file to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// `-` for standard input.
    pub(crate) path: PathBuf,
    /// Bytes; 0 when not known.
    pub(crate) size: u64,
    /// Its number in the file system; 0 for standard input, and where it may be another one when it is opened.
    pub(crate) inode: u64,
    /// When it was last written, ns since 1970.
    pub(crate) modified: i64,
    /// Whether somebody named this very file, rather than a folder above it.
    pub(crate) named: bool,
}

impl Found {
    /// A file, as the file system describes it.
    pub(crate) fn new(path: PathBuf, about: &Metadata, named: bool) -> Found {
        let modified = about.mtime().saturating_mul(1_000_000_000).saturating_add(about.mtime_nsec());
        Found { path, size: about.len(), inode: about.ino(), modified, named }
    }
}

/// The files behind the paths, those of a folder by name. A path that does not exist is an error. A file that is named twice, or
/// named and in a folder that is named too, is there once.
pub(crate) fn find(paths: &[PathBuf]) -> Result<Vec<Found>, ReadError> {
    let mut found = Vec::new();
    for path in paths {
        if path == Path::new("-") {
            found.push(Found { path: path.clone(), size: 0, inode: 0, modified: 0, named: true });
            continue;
        }
        let failed = |cause| ReadError::Open { path: shown(path), cause };
        let about = fs::metadata(path).map_err(failed)?;
        if !about.is_dir() {
            found.push(Found::new(path.clone(), &about, true));
            continue;
        }
        let first = found.len();
        walk(path, &mut found).map_err(failed)?;
        found[first..].sort_by(|a, b| a.path.cmp(&b.path));
    }
    let mut seen = std::collections::HashSet::new();
    found.retain(|file| seen.insert(file.path.clone()));
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
            found.push(Found::new(path, &about, false));
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

/// The period in the name of an S3 object (`…_20220221T1955Z_…`), of five or ten minutes.
pub(crate) fn stamp(path: &Path) -> Option<EventTime> {
    let name = path.file_name()?.to_str()?;
    let is_stamp = |part: &&str| {
        let bytes = part.as_bytes();
        bytes.len() == 14 && bytes[8] == b'T' && bytes[13] == b'Z' && bytes[..8].iter().all(u8::is_ascii_digit)
    };
    let part = name.split('_').find(is_stamp)?;
    let time =
        jiff::civil::DateTime::strptime("%Y%m%dT%H%M", &part[..13]).ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    u32::try_from(time.timestamp().as_second()).ok().map(EventTime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_s3_folder_is_walked_without_other_services_and_its_names_tell_their_periods() {
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
                "111_vpcflowlogs_eu-west-2_fl-0_20220221T2000Z_a.log.gz",
                "222_vpcflowlogs_eu-west-2_fl-0_20220221T1955Z_a.log.gz",
            ]
        );
        assert!(found.iter().all(|f| !f.named && f.size == 1));
        let stamps: Vec<_> = found.iter().map(|f| stamp(&f.path).unwrap().to_string()).collect();
        assert_eq!(stamps, ["2022-02-21T19:55:00Z", "2022-02-21T20:00:00Z", "2022-02-21T19:55:00Z"]);
        assert_eq!(stamp(Path::new("a_20221321T1955Z_b.log")), None);
    }

    #[test]
    fn a_path_that_does_not_exist_is_named() {
        let error = find(&["/nowhere/at/all.log".into()]).unwrap_err();
        assert!(error.to_string().starts_with("open /nowhere/at/all.log: "), "{error}");
    }
}
