//! The table of examples in README.md, made from the catalogue.

use testkit::catalogue::{Example, Overload};

pub const README: &str = "README.md";
/// The name of the comments around the table.
pub const NAME: &str = "examples";

pub fn render(examples: &[Example]) -> String {
    let head = "| Example | Technique | When full | System calls of the lesson |\n|---|---|---|---|\n";
    let rows = examples.iter().map(|example| {
        let overload = match example.overload {
            Overload::Refuse if example.family == "chat" => "rejected with `! server-full`",
            Overload::Refuse => "rejected with `ERR busy`",
            Overload::Queue => "queued in the backlog",
        };
        let calls: Vec<String> = example.syscalls.iter().map(|call| format!("`{call}`")).collect();
        let (name, technique, calls) = (&example.name, &example.description, calls.join(", "));
        format!("| [{name}](./{name}/README.md) | {technique} | {overload} | {calls} |\n")
    });
    head.to_owned() + &rows.collect::<String>()
}
