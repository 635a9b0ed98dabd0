use super::super::tests::{SCHEMA, insert};
use super::super::{open, open_reader};
use super::*;
use messagepipeline::ErrorClass;

fn count(path: &Path) -> i64 {
    let reader = open_reader(path, &SCHEMA).unwrap();
    reader.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
}

fn writer(path: &Path) -> Writer {
    Writer::spawn("test", open(path, &SCHEMA).unwrap()).unwrap()
}

#[tokio::test]
async fn a_failing_or_panicking_job_undoes_only_itself_and_an_answer_is_durable() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.db");
    let writer = writer(&path);
    let jobs = (0..50).map(|n| {
        let writer = writer.clone();
        async move {
            writer
                .call(move |tx| -> Result<(), Error> {
                    insert(tx, n)?;
                    assert!(n % 10 != 3, "a bug in a job");
                    if n % 10 == 7 {
                        insert(tx, n)?;
                    }
                    Ok(())
                })
                .await
        }
    });
    let results = futures_util::future::join_all(jobs).await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 40);
    assert!(matches!(results[3], Err(Error::Panicked { .. })));
    assert_eq!(results[7].as_ref().unwrap_err().class(), ErrorClass::Permanent);
    assert_eq!(count(&path), 40);
    writer.close().await.unwrap();
    assert!(matches!(writer.call(|tx| insert(tx, 99)).await, Err(Error::Closed { .. })));
    assert_eq!(count(&path), 40);
}

#[tokio::test]
async fn jobs_that_wait_share_one_commit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.db");
    let writer = writer(&path);
    let (release, released) = sync_channel(1);
    let (begin, begun) = tokio::sync::oneshot::channel();
    let hold = writer.call(move |_| {
        begin.send(()).unwrap();
        released.recv().unwrap();
        Ok::<_, Error>(0)
    });
    // Each job sees what is committed at its time: nothing, until all that waited are.
    let jobs = (0..30).map(|n| {
        let path = path.clone();
        let insert_and_look = move |tx: &Connection| {
            insert(tx, n)?;
            Ok::<_, Error>(count(&path))
        };
        writer.call(insert_and_look)
    });
    let all = futures_util::future::join_all(jobs);
    // They come when the transaction that holds them up has begun, or some of them would share that one.
    let waiting = async {
        begun.await.unwrap();
        let (seen, ()) = tokio::join!(all, async { release.send(()).unwrap() });
        seen
    };
    let (_, seen) = tokio::join!(hold, waiting);
    assert!(seen.into_iter().all(|committed| committed.unwrap() == 0));
    assert_eq!(count(&path), 30);
}

#[tokio::test]
async fn a_full_disk_is_an_error_for_a_person_and_work_goes_on_when_there_is_space() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.db");
    let writer = writer(&path);
    let limit = |pages: i64| {
        writer.call(move |tx| tx.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())))
    };
    limit(4).await.unwrap();
    let jobs = (0..100).map(|n| writer.call(move |tx| insert(tx, n)));
    let results = futures_util::future::join_all(jobs).await;
    let stored = results.iter().filter(|r| r.is_ok()).count();
    let error = results.iter().find_map(|r| r.as_ref().err()).unwrap();
    assert_eq!((error.class(), &*error.reason()), (ErrorClass::Configuration, "disk-full"), "{error}");
    assert_eq!(count(&path), i64::try_from(stored).unwrap());
    limit(1_000_000).await.unwrap();
    writer.call(|tx| insert(tx, 1_000)).await.unwrap();
    assert_eq!(count(&path), i64::try_from(stored).unwrap() + 1);
}
