//! The files that a run leaves: their structure, their numbers against those of the JSON, and what goes wrong with them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use roxmltree::{Document, ParsingOptions};
use serde_json::Value;
use support::{Ran, Server, answer_once, command, have, pattern, run, serve_well};
use tempfile::TempDir;

const FILES: [&str; 5] = ["html", "svg", "hgrm", "csv", "json"];

/// A run that writes everything into a directory of its own.
fn run_into(dir: &TempDir, server: &Server, args: &[&str]) -> Ran {
    let mut all = command(&["-q", "-p", &server.port(), "--interval", "100ms"]);
    all.args(args).current_dir(dir.path());
    for kind in FILES {
        all.arg(format!("--{kind}")).arg(format!("x.{kind}"));
    }
    run(all.arg("--series").arg("x.ndjson"))
}

fn read(dir: &TempDir, name: &str) -> String {
    fs::read_to_string(dir.path().join(name)).unwrap()
}

fn json(dir: &TempDir, name: &str) -> Value {
    serde_json::from_str(&read(dir, name)).unwrap()
}

fn parse(text: &str) -> Document<'_> {
    Document::parse_with_options(text, ParsingOptions { allow_dtd: true, ..ParsingOptions::default() }).unwrap()
}

/// The text of all cells of the row with this head in the table with this caption.
fn row(page: &Document<'_>, caption: &str, head: &str) -> Vec<String> {
    let text = |node: roxmltree::Node<'_, '_>| {
        node.descendants().filter(|node| node.is_text()).filter_map(|node| node.text()).collect::<String>()
    };
    let mut tables = page.descendants().filter(|node| node.has_tag_name(("http://www.w3.org/1999/xhtml", "table")));
    let has =
        |node: &roxmltree::Node<'_, '_>| node.first_element_child().is_some_and(|first| first.text() == Some(caption));
    let table = tables.find(has).unwrap_or_else(|| panic!("no table {caption}"));
    let mut rows = table.descendants().filter(|node| node.has_tag_name(("http://www.w3.org/1999/xhtml", "tr")));
    let found = rows.find(|row| row.first_element_child().is_some_and(|cell| cell.text() == Some(head)));
    found.unwrap_or_else(|| panic!("no row {head}")).children().skip(1).map(text).collect()
}

fn number(text: &str) -> u64 {
    text.replace('\u{202f}', "").parse().unwrap()
}

#[test]
fn all_files_have_the_numbers_of_the_json() {
    let (server, dir) = (Server::with(serve_well), TempDir::new().unwrap());
    run_into(&dir, &server, &["-c", "4", "-k", "0", "-R", "2000", "-d", "1s"]).expect(0, &["OK: "]);
    let (report, page) = (json(&dir, "x.json"), read(&dir, "x.html"));
    let done = report["requests"]["done"].as_u64().unwrap();

    let page = parse(&page);
    assert_eq!(number(&row(&page, "Result", "done")[0]), done);
    let response = row(&page, "Phases of a request", "response: intended start to the last byte");
    assert_eq!(number(&response[0]), report["latency"]["response_ns"]["count"].as_u64().unwrap());
    assert!(row(&page, "Machine of the client", "kernel")[0].starts_with("Linux "));
    assert_eq!(row(&page, "Plan", "rate"), ["from 2000, to 2000"]);

    let csv = read(&dir, "x.csv");
    let mut lines = csv.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let head = lines.next().unwrap();
    let column = |name: &str| head.iter().position(|cell| *cell == name).unwrap();
    let rows: Vec<_> = lines.collect();
    assert!(rows.len() == 6 && rows.iter().all(|row| row.len() == head.len()), "{csv}");
    for (phase, key) in [("connect", "connect_ns"), ("service", "service_ns"), ("response", "response_ns")] {
        let row = rows.iter().find(|row| row[column("latency")] == phase).unwrap();
        for (name, field) in
            [("count", "count"), ("min_ns", "min"), ("p50_ns", "p50"), ("p99_ns", "p99"), ("max_ns", "max")]
        {
            let value = &report["latency"][key][field];
            let text = if value.is_null() { String::new() } else { value.to_string() };
            assert_eq!(row[column(name)], text, "{phase} {name}");
        }
        assert_eq!(row[column("requests_done")], done.to_string());
    }

    for (file, key) in [("x.hgrm", "response_ns"), ("x.service.hgrm", "service_ns")] {
        let text = read(&dir, file);
        let last = text.lines().rfind(|line| !line.starts_with('#')).unwrap();
        let cells: Vec<f64> = last.split_whitespace().map(|cell| cell.parse().unwrap()).collect();
        let of = |field: &str| report["latency"][key][field].as_f64().unwrap();
        assert!(
            (cells[0] * 1e6 - of("max")).abs() < 1.0 && cells[1] == 1.0 && cells[2] == of("count"),
            "{file}: {last}"
        );
    }

    let series = read(&dir, "x.ndjson");
    let lines: Vec<Value> = series.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let sum = |field: &str| lines.iter().map(|line| line[field].as_u64().unwrap()).sum::<u64>();
    assert!(lines.len() >= 3, "{series}");
    assert_eq!((sum("done"), sum("sent")), (done, report["requests"]["sent"].as_u64().unwrap()));
}

#[test]
fn a_saved_report_gives_the_same_files() {
    let (server, dir) = (Server::with(serve_well), TempDir::new().unwrap());
    let ran = run_into(&dir, &server, &["-c", "2", "-t", "300"]).expect(0, &["OK: "]);
    let mut report = command(&["report", "x.json"]);
    assert_eq!(run(report.current_dir(dir.path())).expect(0, &[]).out, ran.out);
    for kind in ["html", "svg", "hgrm", "csv"] {
        let mut report = command(&["report", "x.json", &format!("--{kind}"), &format!("y.{kind}")]);
        run(report.current_dir(dir.path())).expect(0, &[]);
        assert!(read(&dir, &format!("x.{kind}")) == read(&dir, &format!("y.{kind}")), "{kind}");
    }
    assert_eq!(read(&dir, "x.service.hgrm"), read(&dir, "y.service.hgrm"));
}

#[test]
fn several_runs_lie_over_one_another() {
    let (server, dir) = (Server::with(serve_well), TempDir::new().unwrap());
    for (name, rate) in [("a.json", "300"), ("b<&>.json", "600"), ("c.json", "900")] {
        let mut one = command(&["-q", "-p", &server.port(), "-k", "0", "-R", rate, "-d", "300ms", "-j", name]);
        run(one.current_dir(dir.path())).expect(0, &["OK"]);
    }
    let args = ["report", "a.json", "b<&>.json", "c.json", "--html", "m.html", "--svg", "m.svg", "--hgrm", "m.hgrm"];
    run(command(&args).current_dir(dir.path())).expect(0, &[]);
    let (page, drawing) = (read(&dir, "m.html"), read(&dir, "m.svg"));
    let svg = |name| ("http://www.w3.org/2000/svg", name);
    for text in [&page, &drawing] {
        let document = parse(text);
        let titles =
            document.descendants().filter(|node| node.has_tag_name(svg("title"))).filter_map(|node| node.text());
        let titles: Vec<&str> = titles.collect();
        for part in ["Response time against rate", "Percentiles of the response times", "run: b<&>"] {
            assert!(titles.iter().any(|title| title.contains(part)), "{part} is missing in {titles:?}");
        }
        for chart in document.descendants().filter(|node| node.attribute("role") == Some("img")) {
            assert!(chart.children().any(|node| node.has_tag_name(svg("desc"))));
        }
    }
    assert_eq!(number(&row(&parse(&page), "Rate and response time of all runs", "b<&>")[1]), 180);
    for name in ["m.a.hgrm", "m.a.service.hgrm", "m.b<&>.hgrm", "m.c.service.hgrm"] {
        assert!(dir.path().join(name).exists(), "{name}");
    }
}

#[test]
fn a_page_is_whole_and_what_a_server_says_is_only_text() {
    let server = Server::with(|conn| answer_once(conn, |_| b"ERR <script>alert(1)</script>&\"\n".to_vec()));
    let dir = TempDir::new().unwrap();
    run_into(&dir, &server, &["-c", "1", "-t", "3"]).expect(1, &["ERR line"]);
    let text = read(&dir, "x.html");
    assert!(text.contains("&lt;script&gt;") && !text.contains("<script"), "{text}");
    let page = parse(&text);
    let failure = row(&page, "Failures", "ERR line from the server");
    assert!(failure[1].contains("<script>alert(1)</script>&"), "{failure:?}");
    assert_eq!((failure[3].as_str(), failure[4].as_str()), ("3", "100.0 %"));
    for node in page.descendants() {
        for attribute in node.attributes() {
            let fetches = ["src", "href", "onload"].contains(&attribute.name());
            assert!(!fetches, "{} of {:?}", attribute.name(), node.tag_name());
        }
        assert!(!node.has_tag_name("script") && !node.has_tag_name("link"));
    }
    assert!(text.contains("prefers-color-scheme:dark") && text.contains("@media print") && !text.contains("url("));
    assert!(
        page.descendants()
            .filter(|node| node.tag_name().name() == "table")
            .all(|table| { table.first_element_child().is_some_and(|first| first.tag_name().name() == "caption") })
    );
}

#[test]
fn a_file_that_cannot_be_written_is_known_before_the_run() {
    let (server, dir) = (Server::with(|conn| answer_once(conn, pattern)), TempDir::new().unwrap());
    for kind in ["html", "svg", "hgrm", "csv", "json", "series"] {
        let path = dir.path().join("none/x");
        let ran = run(&mut command(&["-p", &server.port(), &format!("--{kind}"), path.to_str().unwrap()]));
        let ran = ran.expect(1, &[&format!("client: open {}: No such file or directory", path.display())]);
        assert_eq!((ran.err.lines().count(), ran.out.as_str()), (1, ""), "{kind}");
    }
    let twice = run(command(&["-p", &server.port(), "--html", "x", "--svg", "x"]).current_dir(dir.path()));
    twice.expect(1, &["client: x is to be written twice"]);
    run(&mut command(&["-p", &server.port(), "--html", "-", "--svg", "-"])).expect(2, &["only one file"]);
    assert_eq!(server.accepted(), 0);
}

#[test]
fn what_is_there_stays_if_the_run_cannot_start() {
    let (dir, server) = (TempDir::new().unwrap(), Server::mortal(0, |_, _| {}));
    // Its thread ends at once, and with it the listener.
    wait_for_refusal(&server);
    let path = dir.path().join("x.html");
    fs::write(&path, "of yesterday").unwrap();
    run(&mut command(&["-p", &server.port(), "--html", path.to_str().unwrap()])).expect(1, &["nobody listens there"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), "of yesterday");
}

/// Waits until nobody listens there.
fn wait_for_refusal(server: &Server) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while std::net::TcpStream::connect(server.addr).is_ok() {
        assert!(std::time::Instant::now() < end);
        std::thread::yield_now();
    }
}

#[test]
fn a_file_that_is_no_report_is_one_line() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("x.json"), "{}").unwrap();
    let ran = run(command(&["report", "x.json", "--html", "y.html"]).current_dir(dir.path()));
    let ran = ran.expect(1, &["client: read x.json: missing field"]);
    assert_eq!(ran.err.lines().count(), 1);
    assert!(!dir.path().join("y.html").exists());
    run(&mut command(&["report", "/nowhere/x.json"])).expect(1, &["client: read /nowhere/x.json: No such file"]);
    run(&mut command(&["report"])).expect(2, &["FILE.json"]);
}

#[test]
fn a_disk_that_is_full_is_told() {
    let server = Server::with(serve_well);
    for kind in ["html", "csv", "series"] {
        let ran = run(&mut command(&["-q", "-p", &server.port(), "-t", "5", &format!("--{kind}"), "/dev/full"]));
        ran.expect(1, &["OK: 25 answers", "No space left on device"]);
    }
}

/// Runs the client under `script`, which gives it a terminal, and prints the settings of that before and after.
fn on_a_terminal(dir: &Path, client: &str) -> Ran {
    let text = format!("stty rows 30 cols 100; stty -g > before; {client}; echo code $?; stty -g > after");
    let mut script = Command::new("script");
    script.args(["-qec", &text, "/dev/null"]).current_dir(dir).env("TERM", "xterm-256color");
    run(&mut script)
}

fn restored(dir: &TempDir, screen: &str) {
    assert_eq!(read(dir, "before"), read(dir, "after"));
    let (taken, given) = (screen.rfind("\u{1b}[?1049h"), screen.rfind("\u{1b}[?1049l"));
    assert!(taken.is_some() && given > taken, "{screen:?}");
    assert!(screen.rfind("\u{1b}[?25h") > screen.rfind("\u{1b}[?25l"), "{screen:?}");
}

#[test]
fn the_live_view_gives_the_terminal_back_at_every_end() {
    if !have("script", "the_live_view_gives_the_terminal_back_at_every_end") {
        return;
    }
    let (server, dir) = (Server::with(serve_well), TempDir::new().unwrap());
    let client = format!("{} --tui -k 0 -p {}", env!("CARGO_BIN_EXE_client"), server.port());
    let ran = on_a_terminal(dir.path(), &format!("{client} -d 500ms")).expect(0, &["OK: ", "requests/s", "code 0"]);
    restored(&dir, &ran.out);
    for signal in ["INT", "TERM", "HUP", "QUIT"] {
        let text = format!("timeout --foreground -s {signal} 1 {client} -d 30s");
        let ran = on_a_terminal(dir.path(), &text).expect(0, &["INTERRUPTED"]);
        restored(&dir, &ran.out);
    }
}

/// Keys reach the run through a terminal, the schedule follows them, and the report says what was done when.
#[test]
fn keys_change_the_rate_and_the_report_says_so() {
    if !have("script", "keys_change_the_rate_and_the_report_says_so") {
        return;
    }
    for threads in ["1", "2"] {
        let (server, dir) = (Server::with(serve_well), TempDir::new().unwrap());
        let load = format!("-R 200 -k 0 -c 4 -d 4s -T {threads} -b 10 -j x.json -p {}", server.port());
        let client = format!("stty rows 30 cols 100; {} --tui {load}", env!("CARGO_BIN_EXE_client"));
        let mut script = Command::new("script");
        script.args(["-qefc", &client, "/dev/null"]).current_dir(dir.path()).env("TERM", "xterm-256color");
        let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (mut keys, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut seen = until_shown(&mut screen, "PgUp");
        // PgUp twice, then Down and Left.
        for (key, shown) in [("\u{1b}[5~\u{1b}[5~", "hand"), ("\u{1b}[B", "727")] {
            keys.write_all(key.as_bytes()).unwrap();
            seen += &until_shown(&mut screen, shown);
        }
        keys.write_all(b"\x1b[D").unwrap();
        screen.read_to_string(&mut seen).unwrap();
        drop(keys);
        assert!(child.wait().unwrap().success(), "{seen}");
        assert!(seen.contains("by hand ") && seen.contains(" requests/s from "), "{seen}");

        let report = client::json::read(&mut fs::File::open(dir.path().join("x.json")).unwrap()).unwrap();
        let last = report.steered.last().unwrap();
        assert!((last.rate - 800.0 / 1.1 / 1.01).abs() < 1e-6, "{:?}", report.steered);
        assert!(report.steered.is_sorted_by_key(|steer| steer.at_ns));
        // What was due is what the rates come to, each from its moment on.
        let (mut rate, mut at, mut due) = (200.0, 0.0, 0.0);
        let end = report.steered.iter().map(|steer| (steer.rate, steer.at_ns as f64 / 1e9)).chain([(0.0, 4.0)]);
        for (next, from) in end {
            due += rate * (from - at);
            (rate, at) = (next, from);
        }
        assert!((report.honesty.offered as f64 - due).abs() <= 3.0, "{} of {due}", report.honesty.offered);
        assert!(due > 900.0 && report.honesty.rate.is_none() && report.honesty.steady.is_none(), "{due}");
        assert_eq!(report.requests.done + report.requests.censored, report.requests.sent);
        // And it was done so: in the last second about 720.
        let late = report.series.iter().filter(|slice| slice.start_ns >= 3_000_000_000);
        let (done, length) = late.fold((0, 0), |(n, t), slice| (n + slice.offered, t + slice.length_ns));
        let rate = done as f64 * 1e9 / length as f64;
        assert!((rate / 720.0 - 1.0).abs() < 0.2, "{rate}");
    }
}

/// Reads what is drawn until this is.
fn until_shown(screen: &mut impl Read, text: &str) -> String {
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let n = screen.read(&mut buffer).unwrap();
        assert!(n > 0, "{text} was never shown: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..n]);
        let shown = String::from_utf8_lossy(&seen);
        if shown.contains(text) {
            return shown.into_owned();
        }
    }
}

#[test]
fn the_live_view_needs_a_terminal_and_says_so_before_the_run() {
    let server = Server::with(serve_well);
    let ran = run(&mut command(&["--tui", "-p", &server.port()]));
    ran.expect(1, &["client: --tui needs a terminal"]);
    assert_eq!(server.accepted(), 0);
}

/// The thread that makes the load does not draw: with the live view it makes no more system calls.
#[test]
fn the_live_view_costs_the_load_nothing() {
    let name = "the_live_view_costs_the_load_nothing";
    if !have("script", name) || !have("strace", name) {
        return;
    }
    let (server, dir) = (Server::with(serve_well), TempDir::new().unwrap());
    let client = format!("{} --tui -k 0 -c 10 -t 1000 -p {}", env!("CARGO_BIN_EXE_client"), server.port());
    on_a_terminal(dir.path(), &format!("strace -ff -o trace {client}")).expect(0, &["OK: 10000 answers"]);
    let traces = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let traces =
        traces.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("trace.")));
    let calls: Vec<Vec<String>> =
        traces.map(|path| fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()).collect();
    let load = calls.iter().find(|calls| calls.iter().any(|call| call.starts_with("sendto("))).unwrap();
    let writes = load.iter().filter(|call| call.starts_with("write(2")).count();
    assert_eq!(writes, 0);
    // Two calls for each of 10 000 requests, and some more on a busy machine.
    assert!(calls.len() >= 2 && load.len() < 30_000, "{} calls, {} threads", load.len(), calls.len());
}
