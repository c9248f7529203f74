#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::*;

fn pair(rt: &'static Executor) -> (AsyncFd<UnixStream>, AsyncFd<UnixStream>) {
    let (a, b) = UnixStream::pair().unwrap();
    let fd = |stream: UnixStream| {
        stream.set_nonblocking(true).unwrap();
        AsyncFd::new(rt, stream).unwrap()
    };
    (fd(a), fd(b))
}

async fn byte(fd: &AsyncFd<UnixStream>) -> Option<u8> {
    let mut byte = [0];
    let n = fd.async_io(Interest::READABLE, |mut stream| stream.read(&mut byte)).await.unwrap();
    (n == 1).then_some(byte[0])
}

async fn say(fd: &AsyncFd<UnixStream>, byte: u8) {
    fd.async_io(Interest::WRITABLE, |mut stream| stream.write(&[byte])).await.unwrap();
}

async fn sleep_until(rt: &Executor, at: Instant) {
    rt.timeout_at(&mut None, at, std::future::pending::<()>()).await;
}

fn in_ms(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

#[test]
fn notification_wakes_all_waiting_tasks() {
    let rt = Executor::new().unwrap();
    let woken = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&woken);
    rt.block_on(async move {
        let changed = Rc::new(Notify::default());
        for name in 0..3 {
            let (changed, woken) = (Rc::clone(&changed), Rc::clone(&woken));
            rt.spawn(async move {
                changed.notified().await;
                woken.borrow_mut().push(name);
            });
        }
        sleep_until(rt, in_ms(1)).await;
        changed.notify_all();
        sleep_until(rt, in_ms(1)).await;
        assert!(
            rt.timeout_at(&mut None, in_ms(5), changed.notified()).await.is_none(),
            "an old notification"
        );
    })
    .unwrap();
    assert_eq!(*seen.borrow(), [0, 1, 2]);
}

#[test]
fn two_tasks_talk_over_a_socket_pair() {
    let rt = Executor::new().unwrap();
    let (a, b) = pair(rt);
    let sum = rt.block_on(async move {
        rt.spawn(async move {
            while let Some(n) = byte(&b).await {
                say(&b, n * 2).await;
            }
        });
        let mut sum = 0;
        for n in 0..100 {
            say(&a, n).await;
            sum += u32::from(byte(&a).await.unwrap());
        }
        sum
    });
    assert_eq!(sum.unwrap(), 9900);
}

#[test]
fn timers_fire_in_order_and_are_removed_with_their_future() {
    let rt = Executor::new().unwrap();
    let order = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&order);
    rt.block_on(async move {
        let start = Instant::now();
        for ms in [30, 10, 20] {
            let order = Rc::clone(&order);
            rt.spawn(async move {
                sleep_until(rt, start + Duration::from_millis(ms)).await;
                order.borrow_mut().push(ms);
            });
        }
        assert_eq!(rt.timeout_at(&mut None, in_ms(3_600_000), async { 5 }).await, Some(5));
        sleep_until(rt, start + Duration::from_millis(31)).await;
        sleep_until(rt, in_ms(1)).await;
        assert!(rt.timer.borrow().is_empty(), "a timer outlives its future");
    })
    .unwrap();
    assert_eq!(*seen.borrow(), [10, 20, 30]);
}

#[test]
fn task_that_yields_lets_other_tasks_and_timers_run() {
    let rt = Executor::new().unwrap();
    let polls = rt.block_on(async move {
        let count = Rc::new(Cell::new(0));
        let counted = Rc::clone(&count);
        rt.spawn(async move {
            loop {
                counted.set(counted.get() + 1);
                yield_now().await;
            }
        });
        sleep_until(rt, in_ms(1)).await;
        count.get()
    });
    assert!(polls.unwrap() > 0);
}

#[test]
fn event_for_the_reader_does_not_wake_the_writer() {
    let rt = Executor::new().unwrap();
    let polls = rt.block_on(async move {
        let (a, b) = pair(rt);
        let (a, polls) = (Rc::new(a), Rc::new(Cell::new(0)));
        let (writer, counted) = (Rc::clone(&a), Rc::clone(&polls));
        rt.spawn(async move {
            let fill = |mut stream: &UnixStream| stream.write(&[0; 4096]);
            let mut fill_all =
                pin!(async { while writer.async_io(Interest::WRITABLE, fill).await.is_ok() {} });
            poll_fn(|context| {
                counted.set(counted.get() + 1);
                fill_all.as_mut().poll(context)
            })
            .await;
        });
        sleep_until(rt, in_ms(1)).await;
        let before = polls.get();
        for _ in 0..5 {
            say(&b, 1).await;
            assert_eq!(byte(&a).await, Some(1));
        }
        polls.get() - before
    });
    assert_eq!(polls.unwrap(), 0);
}

#[test]
fn short_read_saves_a_call_and_loses_no_byte() {
    let rt = Executor::new().unwrap();
    rt.block_on(async move {
        let (a, b) = pair(rt);
        let (calls, mut seen) = (Cell::new(0), Vec::new());
        for n in 0..20 {
            say(&b, n).await;
            let read = |mut stream: &UnixStream| {
                calls.set(calls.get() + 1);
                let mut buffer = [0; 64];
                let n = stream.read(&mut buffer)?;
                Ok(buffer[..n].to_vec())
            };
            seen.extend(a.async_io(Interest::READABLE, read).await.unwrap());
            a.short_read(true);
        }
        assert_eq!(seen, (0..20).collect::<Vec<u8>>());
        assert_eq!(calls.get(), 20, "no call failed with EAGAIN");
        // The end of file is found although it was reported together with the last bytes.
        say(&b, 20).await;
        drop(b);
        assert_eq!(byte(&a).await, Some(20));
        a.short_read(true);
        assert_eq!(byte(&a).await, None);
    })
    .unwrap();
}

#[test]
fn ten_wakes_are_one_poll() {
    let rt = Executor::new().unwrap();
    let polls = rt.block_on(async move {
        let (polls, kept) = (Rc::new(Cell::new(0)), Rc::new(RefCell::new(None::<Waker>)));
        let (counted, keep) = (Rc::clone(&polls), Rc::clone(&kept));
        rt.spawn(poll_fn(move |context| {
            counted.set(counted.get() + 1);
            keep.replace(Some(context.waker().clone()));
            Poll::Pending
        }));
        sleep_until(rt, in_ms(1)).await;
        let waker = kept.borrow().clone().unwrap();
        (0..10).for_each(|_| waker.wake_by_ref());
        sleep_until(rt, in_ms(1)).await;
        polls.get()
    });
    assert_eq!(polls.unwrap(), 2);
}

#[test]
fn all_tasks_are_dropped_at_the_end() {
    let rt = Executor::new().unwrap();
    let held = Rc::new(());
    let inner = Rc::clone(&held);
    rt.block_on(async move {
        rt.spawn(async move {
            std::future::pending::<()>().await;
            drop(inner);
        });
        sleep_until(rt, in_ms(1)).await;
    })
    .unwrap();
    assert_eq!(Rc::strong_count(&held), 1);
}

#[test]
fn eight_hundred_tasks_at_once() {
    let rt = Executor::new().unwrap();
    let pairs: Vec<_> = (0..400).map(|_| pair(rt)).collect();
    let sum = rt.block_on(async move {
        let (sum, left, done) = (
            Rc::new(Cell::new(0_u64)),
            Rc::new(Cell::new(pairs.len())),
            Rc::new(Notify::default()),
        );
        for (a, b) in pairs {
            rt.spawn(async move {
                while let Some(n) = byte(&b).await {
                    say(&b, n).await;
                }
            });
            let (sum, left, done) = (Rc::clone(&sum), Rc::clone(&left), Rc::clone(&done));
            rt.spawn(async move {
                for n in 0..20 {
                    say(&a, n).await;
                    let answer = u64::from(byte(&a).await.unwrap());
                    sum.set(sum.get() + answer); // another task may add during an await
                }
                left.set(left.get() - 1);
                done.notify_all();
            });
        }
        while left.get() > 0 {
            done.notified().await;
        }
        sum.get()
    });
    assert_eq!(sum.unwrap(), 400 * 190);
    assert!(rt.reactor.sources.borrow().len() <= 800);
}
