use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::join_all;

use super::*;

const BOUNDS: Bounds = Bounds { max_bytes: 1 << 20, segment_bytes: 4096 };

fn spool(directory: &Path) -> Spool {
    Spool::open(directory, BOUNDS).unwrap()
}

/// All that there is, segment by segment, each removed when it was read.
async fn drain(spool: &Spool) -> (Vec<String>, u64) {
    let (mut found, mut damaged, mut last) = (Vec::new(), 0, 0);
    while let Some(read) = spool.read(None).unwrap() {
        for entry in read.entries {
            assert!(entry.sequence > last, "{} after {last}", entry.sequence);
            last = entry.sequence;
            found.push(String::from_utf8(entry.payload).unwrap());
        }
        damaged += read.damaged_bytes;
        assert!(spool.remove(read.to).await.unwrap());
    }
    let aside: u64 = spool.aside().unwrap().iter().map(|one| one.bytes).sum();
    assert_eq!(spool.bytes(), aside);
    (found, damaged)
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect();
    found.sort();
    found
}

fn texts(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|number| format!("entry {number} {}", "x".repeat(200))).collect()
}

async fn append_all(spool: &Spool, texts: &[String]) {
    for text in texts {
        spool.append(text.clone().into_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn what_was_appended_is_read_in_order_after_a_restart_and_once_removed_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let all = texts(0..100);
    append_all(&spool(directory.path()), &all[..50]).await;
    let again = spool(directory.path());
    append_all(&again, &all[50..]).await;
    assert!(segments(directory.path()).len() > 3);
    assert!(again.bytes() > 100 * 200);
    assert_eq!(drain(&again).await, (all, 0));
    assert_eq!(segments(directory.path()).len(), 0);
    let sequence = again.append(b"more".to_vec()).await.unwrap();
    drop(again);
    let next = spool(directory.path()).append(b"more".to_vec()).await.unwrap();
    assert!(next > sequence, "{next} after {sequence}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_at_once_have_each_a_sequence_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Arc::new(Spool::open(directory.path(), Bounds { max_bytes: 1 << 30, ..BOUNDS }).unwrap());
    let appended = (0..2000).map(|number: u32| {
        let spool = Arc::clone(&spool);
        async move { spool.append(number.to_string().into_bytes()).await.unwrap() }
    });
    let mut sequences = join_all(appended).await;
    sequences.sort_unstable();
    let first = spool.begins();
    assert_eq!(sequences, (first..first + 2000).collect::<Vec<u64>>());
    let (mut found, _) = drain(&spool).await;
    found.sort_by_key(|text| text.parse::<u32>().unwrap());
    assert_eq!(found, (0..2000).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_reader_that_follows_goes_on_where_it_was_and_removes_nothing_that_it_has_not_read() {
    let directory = tempfile::tempdir().unwrap();
    let spool = spool(directory.path());
    assert!(spool.read(None).unwrap().is_none());
    spool.append(b"one".to_vec()).await.unwrap();
    let first = spool.read(None).unwrap().unwrap();
    spool.append(b"two".to_vec()).await.unwrap();
    assert!(!spool.remove(first.to).await.unwrap(), "there is more in it");
    let more = spool.read(Some(first.to)).unwrap().unwrap();
    assert_eq!(more.entries.iter().map(|entry| &entry.payload[..]).collect::<Vec<_>>(), [b"two"]);
    assert!(spool.remove(more.to).await.unwrap());
    assert!(!spool.remove(more.to).await.unwrap(), "once");
    spool.append(b"three".to_vec()).await.unwrap();
    assert_eq!(drain(&spool).await.0, ["three"]);
}

#[tokio::test]
async fn what_lies_ahead_is_read_and_a_segment_goes_whatever_is_before_it() {
    let directory = tempfile::tempdir().unwrap();
    let all = texts(0..60);
    let spool = spool(directory.path());
    append_all(&spool, &all).await;
    // Every entry's place, over all segments.
    let (mut places, mut reads, mut next) = (Vec::new(), Vec::new(), spool.next(None));
    while let Some(place) = next {
        let read = spool.read(Some(place)).unwrap().unwrap();
        places.extend(
            read.entries.iter().map(|one| (read.to.at(one.offset), one.sequence, one.payload.clone())),
        );
        next = spool.next(Some(read.to));
        reads.push(read);
    }
    assert!(reads.len() > 3 && !reads.last().unwrap().is_all);
    let mut again = Again::default();
    let mut read_again = |(place, sequence, payload): &(Place, u64, Vec<u8>)| {
        let found = spool.again(&mut again, *place, (*sequence, payload.len())).unwrap();
        found.is_some_and(|found| found == *payload)
    };
    assert_eq!(
        places.iter().map(|(_, _, payload)| String::from_utf8(payload.clone()).unwrap()).collect::<Vec<_>>(),
        all
    );
    assert!(places.iter().rev().all(&mut read_again));
    // The second goes before the first, and what it had is not there.
    let bytes = spool.bytes();
    assert!(spool.remove(reads[1].to).await.unwrap() && spool.bytes() < bytes);
    assert!(spool.read(Some(reads[1].to)).unwrap().is_none());
    let of_second = reads[0].entries.len()..reads[0].entries.len() + reads[1].entries.len();
    let gone: Vec<usize> = (0..places.len()).filter(|number| !read_again(&places[*number])).collect();
    assert_eq!(gone, of_second.collect::<Vec<_>>());
    // Damage that came since costs what it touches.
    let file = OpenOptions::new().write(true).open(&segments(directory.path())[0]).unwrap();
    file.write_all_at(&[0; 8], reads[0].entries[2].offset + 30).unwrap();
    assert_eq!(
        (0..5).map(|number| read_again(&places[number])).collect::<Vec<_>>(),
        [true, true, false, true, true]
    );
    assert!(spool.remove(reads[0].to).await.unwrap());
    assert!(spool.aside().unwrap()[0].name.starts_with("damaged."));
}

#[tokio::test]
async fn a_torn_end_and_a_bad_sector_cost_what_they_touch_and_what_comes_later_is_written_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let all = texts(0..60);
    append_all(&spool(directory.path()), &all).await;
    let files = segments(directory.path());
    let (torn, bad) = (files.last().unwrap(), &files[1]);
    let length = fs::metadata(torn).unwrap().len();
    OpenOptions::new().write(true).open(torn).unwrap().set_len(length - 5).unwrap();
    OpenOptions::new().write(true).open(bad).unwrap().write_all_at(&[0; 512], 1024).unwrap();
    let again = spool(directory.path());
    append_all(&again, &["after".to_owned()]).await;
    let (found, damaged) = drain(&again).await;
    assert!(damaged >= 512, "{damaged}");
    let lost: Vec<&String> = all.iter().filter(|text| !found.contains(text)).collect();
    assert!((4..=5).contains(&lost.len()) && lost.contains(&all.last().unwrap()), "{lost:?}");
    assert_eq!(found.last().unwrap(), "after");
    // What is damaged in the middle is not thrown away; a torn end is nothing.
    let kept = again.aside().unwrap();
    assert!(kept.len() == 1 && kept[0].name.starts_with("damaged."), "{kept:?}");
    assert_eq!(again.bytes(), kept[0].bytes);
}

#[tokio::test]
async fn what_is_over_the_bound_is_refused_and_there_is_room_again_once_something_is_done_with() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open(directory.path(), Bounds { max_bytes: 3000, segment_bytes: 1000 }).unwrap();
    let mut kept = 0;
    let refused = loop {
        match spool.append(vec![b'x'; 276]).await {
            Ok(_) => kept += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, AppendError::Full), "{refused}");
    assert_eq!((kept, spool.bytes()), (10, 3000));
    let read = spool.read(None).unwrap().unwrap();
    assert!(spool.remove(read.to).await.unwrap());
    spool.append(vec![b'x'; 276]).await.unwrap();
    let large = spool.append(vec![0; MAX_PAYLOAD_BYTES + 1]).await;
    assert!(matches!(large, Err(AppendError::Large)));
}

#[tokio::test]
async fn a_folder_is_one_process_s_and_nobody_else_reads_it() {
    use std::os::unix::fs::PermissionsExt as _;

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("spool");
    let first = spool(&path);
    assert!(matches!(Spool::open(&path, BOUNDS), Err(OpenError::InUse)));
    first.append(b"one".to_vec()).await.unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(&segments(&path)[0]).unwrap().permissions().mode() & 0o777, 0o600);
    drop(first);
    assert_eq!(drain(&spool(&path)).await.0, ["one"]);
}

#[test]
fn around_a_bad_sector_everything_is_read_and_another_error_is_one() {
    let file: Vec<u8> = (0..20_000_u32).map(|at| (at % 251) as u8 + 1).collect();
    let bad = 9000..9001;
    let mut reads = |into: &mut [u8], at: u64| {
        let from = usize::try_from(at).unwrap();
        if from < bad.end && from + into.len() > bad.start {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()));
        }
        into.copy_from_slice(&file[from..from + into.len()]);
        Ok(())
    };
    let (bytes, is_bad) = segment::read_what_can_be(100, 15_000, &mut reads).unwrap();
    assert!(is_bad);
    let lost: Vec<usize> = (0..15_000).filter(|at| bytes[*at] != file[at + 100]).map(|at| at + 100).collect();
    assert!(lost.len() == 4096 && lost.contains(&9000), "{lost:?}");
    assert!(bytes.iter().filter(|byte| **byte == 0).count() == 4096);
    let gone = |_: &mut [u8], _: u64| Err(io::Error::from(io::ErrorKind::PermissionDenied));
    assert!(segment::read_what_can_be(0, 10, gone).is_err());
    let away = |_: &mut [u8], _: u64| Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()));
    assert!(
        segment::read_what_can_be(0, 10_000, away).is_err(),
        "a disk that is gone for a while is no bad sector"
    );
}
