//! What each member of a room received, and whether it all fits together: every line to every member that is there,
//! exactly once, in one total order.
//!
//! One member, the *witness*, is there from before the first to after the last of the others, says nothing and is never
//! disturbed. What it heard is the order of the room. Every other life must have heard exactly the piece of that order
//! that lies between its own joining and its end, without its own lines.

use std::collections::BTreeMap;

/// How a life ended, and so how much of the order it must have heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// All, up to the end of its own connection or of the run: it read to the end in peace.
    All,
    /// A beginning without holes: it went away, or was sent away, with lines on their way to it.
    Beginning,
    /// A part, in order: the server's policy is to drop lines for a slow reader, or it was one.
    Part,
}

/// How much of what a life said must have been heard by the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// All: it closed in order, or was there at the end.
    All,
    /// A beginning without holes: a reset may eat what was on its way.
    Beginning,
}

/// One member from its welcome to its end. A nick is used by one life only.
#[derive(Clone, Debug)]
pub struct Life {
    /// Its nick.
    pub nick: String,
    /// The texts it said, in order; each text of a run is unique.
    pub said: Vec<String>,
    /// The lines it received after its welcome, in order.
    pub heard: Vec<String>,
    /// What it must have heard.
    pub must_hear: Heard,
    /// What must have been heard of it.
    pub must_be_heard: Said,
    /// True if it was still in the room when the witness stopped.
    pub stays: bool,
}

/// Everything that is wrong; an empty list is a good history.
pub fn check(witness: &[String], lives: &[Life]) -> Vec<String> {
    let mut faults = twice(witness);
    for life in lives {
        faults.extend(presence(witness, life));
        faults.extend(speech(witness, life));
        faults.extend(hearing(witness, life));
    }
    let known: Vec<String> = lives.iter().map(|life| format!("<{}> ", life.nick)).collect();
    let is_of_no_one = |line: &&String| line.starts_with('<') && !known.iter().any(|nick| line.starts_with(nick));
    faults.extend(witness.iter().filter(is_of_no_one).map(|line| format!("nobody said '{line}'")));
    faults
}

/// No event comes twice.
fn twice(witness: &[String]) -> Vec<String> {
    let mut seen = BTreeMap::new();
    witness.iter().for_each(|line| *seen.entry(line).or_insert(0) += 1);
    seen.into_iter().filter(|(_, n)| *n > 1).map(|(line, n)| format!("'{line}' came {n} times")).collect()
}

fn joined(life: &Life) -> String {
    format!("* {} joined", life.nick)
}

fn is_left(line: &str, nick: &str) -> bool {
    line.strip_prefix("* ").and_then(|rest| rest.strip_prefix(nick)).is_some_and(|rest| rest.starts_with(" left ("))
}

/// One joined line; one left line after it, unless it stays; words only in between.
fn presence(witness: &[String], life: &Life) -> Vec<String> {
    let nick = &life.nick;
    let places = |wanted: &dyn Fn(&str) -> bool| -> Vec<usize> {
        witness.iter().enumerate().filter(|(_, line)| wanted(line)).map(|(i, _)| i).collect()
    };
    let joins = places(&|line| line == joined(life));
    let lefts = places(&|line| is_left(line, nick));
    let words = places(&|line| line.starts_with(&format!("<{nick}> ")));
    let mut faults = Vec::new();
    if joins.len() != 1 {
        faults.push(format!("{nick}: {} joined lines", joins.len()));
    }
    if lefts.len() != usize::from(!life.stays) {
        faults.push(format!(
            "{nick}: {} leave lines, and it {}",
            lefts.len(),
            if life.stays { "stays" } else { "left" }
        ));
    }
    let first = joins.first().copied().unwrap_or(0);
    let last = lefts.first().copied().unwrap_or(witness.len());
    if words.iter().any(|at| *at < first || *at > last) {
        faults.push(format!("{nick}: heard before it joined or after it left"));
    }
    faults
}

/// What it said was heard in its order, and enough of it.
fn speech(witness: &[String], life: &Life) -> Option<String> {
    let prefix = format!("<{}> ", life.nick);
    let heard: Vec<&str> = witness.iter().filter_map(|line| line.strip_prefix(&prefix)).collect();
    let at = heard.iter().zip(&life.said).position(|(heard, said)| heard != said);
    if let Some(at) = at {
        return Some(format!("{}: said '{}', and heard was '{}'", life.nick, life.said[at], heard[at]));
    }
    if heard.len() > life.said.len() {
        return Some(format!("{}: heard '{}', and it never said that", life.nick, heard[life.said.len()]));
    }
    if life.must_be_heard == Said::All && heard.len() < life.said.len() {
        return Some(format!("{}: '{}' was lost", life.nick, life.said[heard.len()]));
    }
    None
}

/// What it heard is its piece of the order.
fn hearing(witness: &[String], life: &Life) -> Option<String> {
    let nick = &life.nick;
    let own = format!("<{nick}> ");
    if let Some(line) = life.heard.iter().find(|line| line.starts_with(&own)) {
        return Some(format!("{nick}: its own line '{line}' came back"));
    }
    let start = witness.iter().position(|line| *line == joined(life)).map_or(0, |at| at + 1);
    let piece = witness[start.min(witness.len())..].iter();
    let piece: Vec<&String> =
        piece.take_while(|line| !is_left(line, nick)).filter(|line| !line.starts_with(&own)).collect();
    if life.must_hear == Heard::Part {
        let mut rest = piece.iter();
        let stranger = life.heard.iter().find(|line| !rest.any(|wanted| wanted == line))?;
        return Some(format!("{nick}: '{stranger}' out of order"));
    }
    let at = piece.iter().zip(&life.heard).position(|(wanted, heard)| *wanted != heard);
    if let Some(at) = at {
        return Some(format!("{nick}: two orders: '{}' where the witness heard '{}'", life.heard[at], piece[at]));
    }
    if life.heard.len() > piece.len() {
        return Some(format!("{nick}: heard '{}' and the witness did not", life.heard[piece.len()]));
    }
    if life.must_hear == Heard::All && life.heard.len() < piece.len() {
        return Some(format!("{nick}: never heard '{}'", piece[life.heard.len()]));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    fn life(nick: &str, said: &[&str], heard: &[&str]) -> Life {
        Life {
            nick: nick.into(),
            said: lines(said),
            heard: lines(heard),
            must_hear: Heard::All,
            must_be_heard: Said::All,
            stays: true,
        }
    }

    const ROOM: &[&str] =
        &["* ann joined", "* bob joined", "<ann> 1", "<bob> 2", "<ann> 3", "* bob left (quit)", "<ann> 4"];

    fn good() -> Vec<Life> {
        let ann = life("ann", &["1", "3", "4"], &["* bob joined", "<bob> 2", "* bob left (quit)"]);
        let bob = Life { stays: false, ..life("bob", &["2"], &["<ann> 1", "<ann> 3"]) };
        vec![ann, bob]
    }

    #[test]
    fn a_good_history_passes() {
        assert_eq!(check(&lines(ROOM), &good()), [""; 0]);
    }

    #[test]
    fn each_fault_has_its_name() {
        type Spoil = fn(&mut Vec<String>, &mut Vec<Life>);
        let spoiled: [(&str, Spoil); 13] = [
            ("came 2 times", |room, _| room.insert(3, "<ann> 1".into())),
            ("2 leave lines", |room, _| room.push("* bob left (again)".into())),
            ("0 leave lines", |room, _| room.retain(|line| !line.contains("left"))),
            ("0 joined lines", |room, _| room.retain(|line| !line.contains("bob joined"))),
            ("after it left", |room, _| room.swap(3, 5)),
            ("'4' was lost", |room, _| room.truncate(6)),
            ("said '1', and heard was '3'", |room, _| room.swap(2, 4)),
            ("it never said that", |room, _| room.push("<ann> 5".into())),
            ("nobody said", |room, _| room.push("<eve> 5".into())),
            ("came back", |_, lives| lives[1].heard.push("<bob> 2".into())),
            ("two orders", |_, lives| lives[1].heard.swap(0, 1)),
            ("never heard '<ann> 3'", |_, lives| drop(lives[1].heard.pop())),
            ("the witness did not", |_, lives| lives[1].heard.push("<ann> 4".into())),
        ];
        for (name, spoil) in spoiled {
            let (mut room, mut lives) = (lines(ROOM), good());
            spoil(&mut room, &mut lives);
            let faults = check(&room, &lives);
            assert!(faults.iter().any(|fault| fault.contains(name)), "{name}: {faults:?}");
        }
    }

    #[test]
    fn who_was_cut_off_may_miss_the_end_and_no_more() {
        let mut lives = good();
        lives[1].heard.pop();
        lives[1].must_hear = Heard::Beginning;
        assert_eq!(check(&lines(ROOM), &lives), [""; 0]);
        lives[1].heard = lines(&["<ann> 3"]);
        assert!(check(&lines(ROOM), &lives)[0].contains("two orders"));
        lives[1].must_hear = Heard::Part;
        assert_eq!(check(&lines(ROOM), &lives), [""; 0]);
        lives[1].heard = lines(&["<ann> 3", "<ann> 1"]);
        assert!(check(&lines(ROOM), &lives)[0].contains("out of order"));
        lives[1].said.push("on its way".into());
        lives[1].heard.clear();
        assert!(check(&lines(ROOM), &lives)[0].contains("was lost"));
        lives[1].must_be_heard = Said::Beginning;
        assert_eq!(check(&lines(ROOM), &lives), [""; 0]);
    }
}
