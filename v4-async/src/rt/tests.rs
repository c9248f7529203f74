#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;

use super::*;

fn runtime() -> Rc<Runtime> {
    Runtime::new(Trace::off()).unwrap()
}

fn pair(rt: &Rc<Runtime>) -> (Sock<UnixStream>, Sock<UnixStream>) {
    let (a, b) = UnixStream::pair().unwrap();
    let sock = |stream: UnixStream| {
        stream.set_nonblocking(true).unwrap();
        Sock::new(rt, stream).unwrap()
    };
    (sock(a), sock(b))
}

async fn byte(sock: &Sock<UnixStream>) -> Option<u8> {
    let mut byte = [0];
    let n = sock.input(|mut stream| stream.read(&mut byte)).await.unwrap();
    (n == 1).then_some(byte[0])
}

async fn say(sock: &Sock<UnixStream>, byte: u8) {
    sock.output(|mut stream| stream.write(&[byte])).await.unwrap();
}

fn in_ms(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

#[test]
fn tasks_are_polled_in_the_order_in_which_they_were_woken() {
    let (rt, order) = (runtime(), Rc::new(RefCell::new(Vec::new())));
    let (main, seen) = (Rc::clone(&rt), Rc::clone(&order));
    let bells: Vec<_> = (0..3).map(|_| Rc::new(Bell::new(&rt))).collect();
    rt.run(async move {
        for (name, bell) in bells.iter().cloned().enumerate() {
            let order = Rc::clone(&order);
            main.spawn(async move {
                bell.rung().await;
                order.borrow_mut().push(name);
            });
        }
        main.sleep_until(in_ms(1)).await;
        [2, 0, 1].into_iter().for_each(|name| bells[name].ring());
        main.sleep_until(in_ms(1)).await;
    })
    .unwrap();
    assert_eq!(*seen.borrow(), [2, 0, 1]);
}

#[test]
fn a_ring_before_the_wait_is_not_lost_and_many_are_one() {
    let rt = runtime();
    let (main, bell) = (Rc::clone(&rt), Bell::new(&rt));
    let again = rt.run(async move {
        bell.ring();
        bell.ring();
        bell.rung().await;
        main.until(in_ms(5), bell.rung()).await
    });
    assert_eq!(again.unwrap(), None);
}

#[test]
fn two_tasks_talk_over_a_socket_pair() {
    let rt = runtime();
    let (a, b) = pair(&rt);
    let main = Rc::clone(&rt);
    let sum = rt.run(async move {
        main.spawn(async move {
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
fn the_end_of_a_stream_is_seen_though_a_short_read_came_with_it() {
    let rt = runtime();
    let (a, b) = pair(&rt);
    let bytes = rt.run(async move {
        say(&a, 7).await;
        drop(a);
        let mut bytes = [0; 64];
        let first = b.input(|mut stream| stream.read(&mut bytes)).await.unwrap();
        b.input_drained();
        (first, b.input(|mut stream| stream.read(&mut bytes)).await.unwrap())
    });
    assert_eq!(bytes.unwrap(), (1, 0));
}

#[test]
fn what_comes_after_a_short_read_is_a_new_edge() {
    let rt = runtime();
    let (a, b) = pair(&rt);
    let (main, bell) = (Rc::clone(&rt), Rc::new(Bell::new(&rt)));
    let bytes = rt.run(async move {
        say(&a, 1).await;
        let first = byte(&b).await;
        b.input_drained();
        let ring = Rc::clone(&bell);
        main.spawn(async move {
            say(&a, 2).await;
            ring.ring();
            std::future::pending::<()>().await;
            drop(a);
        });
        bell.rung().await;
        (first, main.until(in_ms(10_000), byte(&b)).await)
    });
    assert_eq!(bytes.unwrap(), (Some(1), Some(Some(2))));
}

#[test]
fn timers_ring_in_their_order_and_leave_with_their_future() {
    let (rt, order) = (runtime(), Rc::new(RefCell::new(Vec::new())));
    let (main, seen) = (Rc::clone(&rt), Rc::clone(&order));
    rt.run(async move {
        let start = Instant::now();
        for ms in [30, 10, 20] {
            let (rt, order) = (Rc::clone(&main), Rc::clone(&order));
            main.spawn(async move {
                rt.sleep_until(start + Duration::from_millis(ms)).await;
                order.borrow_mut().push(ms);
            });
        }
        assert_eq!(main.until(in_ms(3_600_000), async { 5 }).await, Some(5));
        main.sleep_until(start + Duration::from_millis(31)).await;
        main.sleep_until(in_ms(1)).await;
        assert!(main.timers.borrow().is_empty(), "a timer outlives its future");
    })
    .unwrap();
    assert_eq!(*seen.borrow(), [10, 20, 30]);
}

#[test]
fn a_task_with_endless_input_yields_to_the_others() {
    let rt = runtime();
    let (a, b) = pair(&rt);
    let main = Rc::clone(&rt);
    let turns = rt.run(async move {
        // Whoever reads what it has just written never finds EAGAIN.
        let count = Rc::new(Cell::new(0));
        let counted = Rc::clone(&count);
        main.spawn(async move {
            loop {
                say(&a, 1).await;
                byte(&b).await;
                counted.set(counted.get() + 1);
            }
        });
        main.sleep_until(in_ms(1)).await;
        count.get()
    });
    assert!(turns.unwrap() > 0);
}

#[test]
fn another_thread_wakes_the_sleeping_loop() {
    let rt = runtime();
    let answer = rt.run(async move {
        let (send_waker, wakers) = mpsc::channel::<Waker>();
        let answer = Arc::new(Mutex::new(None));
        let shared = Arc::clone(&answer);
        let helper = thread::spawn(move || {
            let waker = wakers.recv().unwrap();
            *shared.lock().unwrap() = Some(42);
            waker.wake();
        });
        let answer = poll_fn(|context| match *answer.lock().unwrap() {
            Some(value) => Poll::Ready(value),
            None => {
                let _ = send_waker.send(context.waker().clone());
                Poll::Pending
            }
        })
        .await;
        helper.join().unwrap();
        answer
    });
    assert_eq!(answer.unwrap(), 42);
}

#[test]
fn ten_wakes_are_one_poll() {
    let rt = runtime();
    let main = Rc::clone(&rt);
    let polls = rt.run(async move {
        let polls = Rc::new(Cell::new(0));
        let (counted, kept) = (Rc::clone(&polls), Rc::new(RefCell::new(None::<Waker>)));
        let keep = Rc::clone(&kept);
        main.spawn(poll_fn(move |context| {
            counted.set(counted.get() + 1);
            keep.replace(Some(context.waker().clone()));
            Poll::Pending
        }));
        main.sleep_until(in_ms(1)).await;
        let waker = kept.borrow().clone().unwrap();
        (0..10).for_each(|_| waker.wake_by_ref());
        main.sleep_until(in_ms(1)).await;
        polls.get()
    });
    assert_eq!(polls.unwrap(), 2);
}

#[test]
fn a_dropped_descriptor_leaves_the_interest_list() {
    let rt = runtime();
    for _ in 0..3 {
        let (a, b) = pair(&rt);
        drop((a, b));
    }
    assert!(rt.socks.borrow().is_empty());
}

#[test]
fn all_tasks_are_dropped_at_the_end() {
    let rt = runtime();
    let (main, held) = (Rc::clone(&rt), Rc::new(()));
    let inner = Rc::clone(&held);
    rt.run(async move {
        main.spawn(async move {
            std::future::pending::<()>().await;
            drop(inner);
        });
        main.sleep_until(in_ms(1)).await;
    })
    .unwrap();
    assert_eq!(Rc::strong_count(&held), 1);
    assert_eq!(Rc::strong_count(&rt), 1, "the runtime is part of a circle");
}

#[test]
fn eight_hundred_tasks_at_once() {
    let rt = runtime();
    let pairs: Vec<_> = (0..400).map(|_| pair(&rt)).collect();
    let main = Rc::clone(&rt);
    let sum = rt.run(async move {
        let (sum, left, done) = (Rc::new(Cell::new(0_u64)), Rc::new(Cell::new(pairs.len())), Rc::new(Bell::new(&main)));
        for (a, b) in pairs {
            main.spawn(async move {
                while let Some(n) = byte(&b).await {
                    say(&b, n).await;
                }
            });
            let (sum, left, done) = (Rc::clone(&sum), Rc::clone(&left), Rc::clone(&done));
            main.spawn(async move {
                for n in 0..50 {
                    say(&a, n).await;
                    // Not in one expression: what was read before an await is old after it.
                    let n = byte(&a).await.unwrap();
                    sum.set(sum.get() + u64::from(n));
                }
                left.set(left.get() - 1);
                if left.get() == 0 {
                    done.ring();
                }
            });
        }
        done.rung().await;
        sum.get()
    });
    assert_eq!(sum.unwrap(), 400 * 49 * 50 / 2);
}
