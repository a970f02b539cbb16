//! `submit masters`

use crate::fake::{Fake, MEMBERS};
use crate::program::{Done, Program, command, submit};

async fn masters(fake: &Fake, words: &[&str]) -> Done {
    let mut command = command(&[&"masters"]);
    command.args(words).args(["--master", &fake.url()]);
    Program::spawn(command).done().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_members_are_listed() {
    let fake = Fake::start().await;
    let done = masters(&fake, &[]).await;
    done.assert(0, &[]);
    let lines: Vec<Vec<&str>> = done.text().lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["ID", "ROLE", "ADDRESS", "RAFT", "LAG", "LAST", "CONTACT", "STATE", "VERSION"]);
    assert_eq!(lines[1], ["a1b2c3d4", "leader*", "h0:7077", "h0:7078", "0", "alive", "0.1.0"]);
    assert_eq!(
        lines[2],
        ["b1b2c3d4", "follower", "h1:7077", "h1:7078", "1", "10", "ms", "ago", "alive", "0.1.0"]
    );
    assert_eq!(lines[3][7..], ["ago", "silent", "0.1.0"]);
    let value: serde_json::Value =
        serde_json::from_slice(&masters(&fake, &["-o", "json"]).await.stdout).unwrap();
    assert_eq!((&value["cluster_id"], &value["members"][2]["state"]), (&"c1".into(), &"silent".into()));
    assert_eq!(masters(&fake, &["-o", "jsonl"]).await.text().lines().count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_made_and_told() {
    let fake = Fake::start().await;
    for (words, told) in [
        (&["add", "c1"][..], format!("{} votes\n", MEMBERS[2])),
        (&["remove", "c1", "--yes"], format!("{} removed\n", MEMBERS[2])),
        (&["transfer", "b1"], format!("{} leads\n", MEMBERS[1])),
        (&["transfer"], format!("{} leads\n", MEMBERS[0])),
        (&["snapshot"], "snapshot of index 99 written\n".to_owned()),
    ] {
        let done = masters(&fake, words).await;
        done.assert(0, &[]);
        assert_eq!((done.text(), done.stderr.as_str()), (told.as_str(), ""), "{words:?}");
    }
    assert_eq!(fake.state.seen.borrow().changes, ["add c1", "remove c1", "transfer b1", "transfer "]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_removed_without_somebodys_yes() {
    let fake = Fake::start().await;
    let done = masters(&fake, &["remove", "c1"]).await;
    done.assert(2, &["nobody can be asked", "hint: submit masters remove c1 --yes"]);
    assert!(fake.state.seen.borrow().changes.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_masters_refusals_come_with_their_hints() {
    let fake = Fake::start().await;
    masters(&fake, &["remove", "b1", "--yes"])
        .await
        .assert(1, &["error: cannot remove b1: 1 of the 2 masters", "no majority\nhint: start it first\n"]);
    masters(&fake, &["add", "ff"])
        .await
        .assert(2, &["error: cannot add ff: no member \"ff\"", "hint: `submit masters` shows the ids"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_whose_answer_was_lost_has_succeeded() {
    let (mut leader, next) = (Fake::start().await, Fake::start().await);
    next.follow(Some(&leader));
    leader.swallow_answers();
    let program =
        Program::spawn(command(&[&"masters", &"remove", &"a1", &"--yes", &"--master", &next.url()]));
    leader.wait_for("removal", |seen| !seen.changes.is_empty()).await;
    // What one has committed the other knows.
    next.forget_members();
    next.lead(500);
    leader.die().await;
    let done = program.done().await;
    done.assert(0, &[]);
    assert_eq!(done.text(), "a1 removed\n");
    assert_eq!(next.state.seen.borrow().changes, ["remove a1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lead_is_not_passed_on_twice() {
    let (mut leader, next) = (Fake::start().await, Fake::start().await);
    next.follow(Some(&leader));
    leader.swallow_answers();
    let program = Program::spawn(command(&[&"masters", &"transfer", &"--master", &next.url()]));
    leader.wait_for("transfer", |seen| !seen.changes.is_empty()).await;
    next.lead(500);
    leader.die().await;
    let done = program.done().await;
    done.assert(0, &[]);
    assert_eq!(done.text(), format!("{} leads\n", MEMBERS[0]));
    assert!(next.state.seen.borrow().changes.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_help_tells_what_no_command_does() {
    let done = submit(&[&"masters", &"--help"]).await;
    done.assert(0, &[]);
    for words in ["--join HOST:7078", "--force-new-cluster", "transfer", "snapshot"] {
        assert!(done.text().contains(words), "{words}\n{}", done.text());
    }
}

/// A terminal of the test's own: its keyboard and screen, and the end that programs are connected to.
fn terminal() -> (std::fs::File, std::fs::File) {
    use rustix::ioctl::{Getter, Setter, ioctl, opcode};
    let open = |path: &str| std::fs::File::options().read(true).write(true).open(path);
    let controller = open("/dev/ptmx").unwrap();
    // SAFETY: TIOCSPTLCK takes a pointer to an int, and TIOCGPTN writes an unsigned int.
    let number = unsafe {
        ioctl(&controller, Setter::<{ opcode::write::<i32>(b'T', 0x31) }, i32>::new(0)).unwrap();
        ioctl(&controller, Getter::<{ opcode::read::<u32>(b'T', 0x30) }, u32>::new()).unwrap()
    };
    let terminal = open(&format!("/dev/pts/{number}")).unwrap();
    (controller, terminal)
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_terminal_a_removal_is_asked_about() {
    use std::io::{Read, Write};
    for (answer, code, told, changes) in [
        ("y\n", 0, format!("{} removed\n", MEMBERS[2]), vec![format!("remove {}", MEMBERS[2])]),
        ("\n", 1, String::new(), vec![]),
    ] {
        let fake = Fake::start().await;
        let (mut controller, terminal) = terminal();
        let mut command = command(&[&"masters", &"remove", &"c1", &"--master", &fake.url()]);
        command.stdin(terminal.try_clone().unwrap()).stderr(terminal);
        let child = command.spawn().unwrap();
        // The command still holds its end of the terminal.
        drop(command);
        let asked = tokio::task::spawn_blocking(move || {
            let (mut screen, mut piece) = (String::new(), [0; 256]);
            while !screen.contains("[y/N]") {
                let n = controller.read(&mut piece).unwrap();
                screen.push_str(&String::from_utf8_lossy(&piece[..n]));
            }
            controller.write_all(answer.as_bytes()).unwrap();
            (screen, controller)
        });
        let (screen, _controller) =
            tokio::time::timeout(crate::program::DEADLINE, asked).await.unwrap().unwrap();
        assert!(screen.contains(&format!("remove {} (h2:7077, learner)?", MEMBERS[2])), "{screen}");
        let done = tokio::time::timeout(crate::program::DEADLINE, child.wait_with_output()).await;
        let done = done.unwrap().unwrap();
        assert_eq!((done.status.code(), std::str::from_utf8(&done.stdout).unwrap()), (Some(code), &*told));
        assert_eq!(fake.state.seen.borrow().changes, changes);
    }
}
