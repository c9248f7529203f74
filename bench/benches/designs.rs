//! `cargo bench -p bench`: criterion's own report of every design, one group per workload, the bare loop among them.
//!
//! Each design's release binary is driven through the client library with ten clients; the time is that of a request.
#![allow(clippy::unwrap_used)] // bench code

use std::path::Path;
use std::time::Duration;

use bench::measure::Workload;
use bench::subject::{self, Subject};
use client::Until;
use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};

const CLIENTS: u32 = 10;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let subjects = subject::all(root).unwrap();
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    for workload in [Workload::Kept, Workload::Connect] {
        let mut group = criterion.benchmark_group(workload.name());
        group.throughput(Throughput::Elements(1));
        for subject in &subjects {
            bench(&mut group, subject, workload);
        }
        group.finish();
    }
    criterion.final_summary();
}

fn bench(group: &mut BenchmarkGroup<'_, WallTime>, subject: &Subject, workload: Workload) {
    group.bench_function(&subject.name, |bencher| {
        // Criterion runs this more than once, and the server of the last time has ended by then.
        let server = subject.start(CLIENTS as usize).unwrap().unwrap();
        bencher.iter_custom(|iterations| {
            let mut plan = workload.plan(&server, CLIENTS, Until::Tries(1));
            let per_try = u64::from(plan.per_connection) * u64::from(CLIENTS);
            let tries = iterations.div_ceil(per_try).max(1);
            plan.until = Until::Tries(tries as u32);
            let report = client::run(&plan, &mut ()).unwrap();
            assert_eq!(report.failures(), 0, "{}", subject.name);
            report.elapsed.mul_f64(iterations as f64 / report.requests.done as f64)
        });
    });
}
