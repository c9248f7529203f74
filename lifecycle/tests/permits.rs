//! The semaphore: a permit is free again after its holder has dropped it.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use lifecycle::Semaphore;

#[test]
fn no_more_threads_run_than_there_are_permits() {
    const PERMITS: usize = 3;
    let semaphore = Semaphore::new(PERMITS);
    let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..20 {
            let permit = semaphore.acquire();
            scope.spawn(|| {
                most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
                thread::sleep(Duration::from_millis(2));
                running.fetch_sub(1, SeqCst);
                drop(permit);
            });
        }
        semaphore.wait_for_all();
        assert_eq!(running.load(SeqCst), 0, "wait_for_all returns when the last permit is dropped");
    });
    assert_eq!(most.load(SeqCst), PERMITS);
}

#[test]
fn a_panic_releases_the_permit() {
    let semaphore = Semaphore::new(1);
    let permit = semaphore.acquire();
    let ended = thread::spawn(move || {
        let _permit = permit;
        std::panic::resume_unwind(Box::new(()));
    });
    assert!(ended.join().is_err());
    drop(semaphore.acquire());
}
