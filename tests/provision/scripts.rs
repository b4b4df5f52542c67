//! What a script finds when it runs, and how it ends: by itself, by a failure or by a deadline.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use forge::definition::{Seal, Step};
use forge::provision::{Place, ProvisionError, seal};

use crate::bench::{BASH, Bench, Fault, SH, is_running, packages, shell};

#[tokio::test]
async fn failures_name_the_line_in_sh_and_bash() {
    let places = |first, last, text: &str| Some(Place { first, last, text: text.to_owned() });
    for (interpreter, text, code, place) in [
        (SH, "true\n\nls /nonexistent-forge\ntrue\n", 2, places(3, 3, "ls /nonexistent-forge")),
        (SH, "true\nexit 3\n", 3, places(2, 2, "exit 3")),
        (SH, "x=$(false)\ntrue\n", 1, places(1, 1, "x=$(false)")),
        (SH, "true\nif true; then\n  false\nfi\ntrue\n", 1, places(1, 4, "true")),
        (SH, "f() {\n  false\n}\ntrue\nf\n", 1, places(5, 5, "f")),
        (SH, "true\necho $forge_nothing\n", 2, places(2, 2, "echo $forge_nothing")),
        (SH, "true | false\ntrue\n", 1, places(1, 1, "true | false")),
        (SH, "trap 'true' EXIT\nfalse\n", 1, None),
        (BASH, "true\n\nls /nonexistent-forge\ntrue\n", 2, places(3, 3, "ls /nonexistent-forge")),
        (BASH, "f() {\n  true\n  false\n}\nif true; then\n  f\nfi\n", 1, places(3, 3, "false")),
        (SH, "if true; then\n  forge-nothing\nfi\n", 127, places(2, 2, "forge-nothing")),
        (BASH, "false || true\nexit 3\n", 3, None),
        (BASH, "true\necho $forge_nothing\n", 1, places(2, 2, "echo $forge_nothing")),
        (&["/usr/bin/env", "python3"], "import sys\nsys.exit(4)\n", 4, None),
    ] {
        let bench = Bench::new();
        match bench.run(interpreter, text).await.unwrap_err() {
            ProvisionError::Failed { code: found, place: at, .. } => {
                assert_eq!((found, at), (code, place), "{interpreter:?} {text}");
            }
            other => panic!("{other}"),
        }
        bench.assert_clean();
    }
}

#[tokio::test]
async fn marks_do_not_change_what_a_script_does() {
    let bench = Bench::new();
    let text = r#"set +e
false
rc=$?
echo "rc $rc"
false
test $? -eq 1 && echo 'status kept'
check() { echo "saw $?"; }
(exit 7)
check
export A=1
B=$(echo 2)
cat <<END
_ $A $B
END
read -r line <<'END'
  from here
END
echo "$line"
set -- x y
echo "$# $1"
"#;
    bench.run(&["/bin/sh", "-u"], text).await.unwrap();
    assert_eq!(bench.shown(), ["rc 1", "status kept", "saw 7", "_ 1 2", "from here", "2 x"],);
}

#[tokio::test]
async fn a_deadline_ends_the_whole_tree() {
    let bench = Bench::new();
    // One child ignores the polite signal.
    let text = "echo begun\nsh -c 'trap : TERM; while :; do sleep 613.1; done' &\nsleep 613.2 & sleep 613.3";
    let error = bench.apply(&shell(SH, text), Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(&error, ProvisionError::TimedOut { tail, .. } if tail == &["begun"]), "{error}");
    assert_eq!(error.to_string(), "test: still running after 1.0 s, so it was ended");
    assert!(!is_running("sleep 613."));
    bench.assert_clean();
}

#[tokio::test]
async fn a_background_child_does_not_hold_the_step() {
    let bench = Bench::new();
    let start = Instant::now();
    bench.run(SH, "sleep 614.1 &\necho done").await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(bench.shown(), ["done", "forge: ended 1 process that test had left running"]);
    assert!(!is_running("sleep 614.1"));
    bench.assert_clean();
}

#[tokio::test]
async fn a_killed_script_is_not_waited_for() {
    let bench = Bench::new();
    let error = bench.run(SH, "echo here; kill -9 $PPID; sleep 0.2").await.unwrap_err();
    assert!(matches!(&error, ProvisionError::Vanished { tail, .. } if tail[0] == "here"), "{error}");
    bench.assert_clean();
}

#[tokio::test]
async fn attempts_are_repeated_and_reported() {
    let bench = Bench::new();
    let counter = bench.path("count");
    let text = format!("echo x >>{0}\n[ $(wc -l <{0}) = 2 ]\n", counter.display());
    let step = Step { retries: 3, ..shell(SH, &text) };
    bench.apply(&step, Duration::from_secs(20)).await.unwrap();
    assert_eq!(fs::read_to_string(&counter).unwrap(), "x\nx\n");
    let retries = bench.retries.lock().unwrap().clone();
    assert_eq!(retries.len(), 1);
    assert!(retries[0].starts_with("2/4: test: exit code 1 at line 2: `[ "), "{}", retries[0]);
}

#[tokio::test]
async fn secrets_are_masked_and_never_in_argv() {
    let mut bench = Bench::new();
    bench.secrets = vec!["hunter2hunter2".to_owned()];
    let mut step = shell(
        SH,
        "echo \"pw $PW\"\nfor f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$f; done 2>/dev/null | grep -c hunter2 || true\necho hunter2hunter2; false\n",
    );
    step.shell.as_mut().unwrap().env = BTreeMap::from([
        ("PW".to_owned(), "hunter2hunter2".to_owned()),
        ("Q".to_owned(), "it's \"$x\"".to_owned()),
    ]);
    let error = bench.apply(&step, Duration::from_secs(20)).await.unwrap_err();
    // grep's own command line is the only one.
    assert_eq!(bench.shown()[0], "pw ••••");
    assert_eq!(bench.shown().last().unwrap(), "••••");
    assert!(!format!("{error} {:?} {:?}", error.tail(), bench.logged.lock().unwrap()).contains("hunter2h"));
    assert!(error.to_string().contains("echo ••••; false"), "{error}");
    let count: u32 = bench.shown()[1].parse().unwrap();
    assert!(count <= 1, "{count} command lines hold the secret");
}

#[tokio::test]
async fn lost_answers_do_not_run_a_script_twice() {
    let faults = [Fault::NotSent, Fault::Unknown, Fault::Timeout, Fault::Refused, Fault::Gone];
    let cases = faults.into_iter().flat_map(|fault| (0..3).map(move |call| (fault, call)));
    let runs = cases.map(async |(fault, call)| {
        let mut bench = Bench::new();
        bench.host.fault = Some((call, fault));
        let counter = bench.path("count");
        let text = format!("echo x >>{}\nsleep 0.3\necho end\n", counter.display());
        let result = bench.run(SH, &text).await;
        let runs = fs::read_to_string(&counter).unwrap_or_default().len() / 2;
        if matches!(fault, Fault::Refused | Fault::Gone) {
            let error = result.unwrap_err().to_string();
            assert!(
                ["starting test: ", "looking at test: ", "cleaning up after test: "]
                    .iter()
                    .any(|what| error.starts_with(what)),
                "{error}"
            );
            assert!(runs <= 1, "{fault:?} {call}: ran {runs} times");
        } else {
            result.unwrap();
            assert_eq!((runs, bench.shown()), (1, vec!["end".to_owned()]), "{fault:?} {call}");
            bench.assert_clean();
        }
    });
    futures_util::future::join_all(runs).await;
}

#[tokio::test]
async fn large_scripts_go_in_pieces() {
    let bench = Bench::new();
    let text = format!("# {}\necho \"$A\"\n", "x".repeat(150_000));
    let mut step = shell(SH, &text);
    step.shell.as_mut().unwrap().env = BTreeMap::from([("A".to_owned(), "whole\nvalue".to_owned())]);
    bench.apply(&step, Duration::from_secs(20)).await.unwrap();
    assert_eq!(bench.shown(), ["whole", "value"]);
    bench.assert_clean();
}

#[tokio::test]
async fn script_files_are_rendered_when_they_are_templates() {
    let bench = Bench::new();
    fs::write(bench.path("a.sh.j2"), "echo {{ name }}\n").unwrap();
    fs::write(bench.path("a.sh"), "echo '{{ name }}'\n").unwrap();
    for name in ["a.sh.j2", "a.sh"] {
        let mut step = shell(SH, "");
        let shell = step.shell.as_mut().unwrap();
        (shell.inline, shell.script) = (None, Some(name.to_owned()));
        bench.apply(&step, Duration::from_secs(20)).await.unwrap();
    }
    assert_eq!(bench.shown(), ["odin", "{{ name }}"]);
}

#[tokio::test]
async fn wrong_steps_are_refused_before_the_guest_is_touched() {
    let bench = Bench::new();
    let both = Step { packages: packages(&[], false).packages, ..shell(SH, "true") };
    let mut variable = shell(SH, "true");
    variable.shell.as_mut().unwrap().env = BTreeMap::from([("A B".to_owned(), String::new())]);
    for step in [Step::default(), both, packages(&["--reinstall"], false), shell(&[], "true"), variable] {
        let error = bench.apply(&step, Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(error, ProvisionError::Invalid(_)), "{error}");
    }
    bench.assert_clean();
}

#[tokio::test]
async fn sealing_tells_the_script_what_must_be_gone() {
    let bench = Bench::new();
    fs::write(bench.path("seal.sh"), "echo \"$USER_NAME|$FORGE_ABSENT|$FORGE_TRIM\"\n").unwrap();
    for trim in [false, true] {
        let what = Seal {
            script: "seal.sh".to_owned(),
            env: BTreeMap::from([("USER_NAME".to_owned(), "odin".to_owned())]),
            absent: vec!["/a b".to_owned(), "/c*".to_owned()],
            trim,
        };
        bench.with_context(async |cx| seal(&what, Duration::from_secs(20), cx).await).await.unwrap();
    }
    assert_eq!(bench.shown(), ["odin|/a b", "/c*|no", "odin|/a b", "/c*|yes"]);
}
