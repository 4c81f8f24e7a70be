//! Standard output and error.

use crate::{Test, action::Action, common::Fixture};

pub(crate) const TESTS: &[Test] = &[
    ("logs_are_blobs_and_empty_ones_are_left_out", blobs),
    ("long_logs_keep_their_head_and_tail", long),
    ("wanted_logs_are_returned_inline", inline),
    ("a_log_that_is_opened_again_loses_nothing", opened_again),
];

fn blobs(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let response = node
            .execute(&Action::script("echo out; echo err >&2"))
            .await;
        let result = response.result.unwrap();
        assert_eq!(node.log(result.stdout_digest.as_ref()).await, "out\n");
        assert_eq!(node.log(result.stderr_digest.as_ref()).await, "err\n");
        assert!(result.stdout_raw.is_empty() && result.stderr_raw.is_empty());
        let result = node.succeed(&Action::script("true")).await;
        assert_eq!((result.stdout_digest, result.stderr_digest), (None, None));
    });
}

fn long(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture
            .node_with(|options| options.max_log_bytes = 2000)
            .await;
        let log = node.stdout(&Action::script("seq 100000")).await;
        assert!(log.starts_with("1\n2\n3\n") && log.ends_with("\n99999\n100000\n"));
        assert!(log.contains("\n[gorego left out 586895 of 588895 bytes of stdout here"));
        assert!(log.contains("execution.max_log_bytes") && log.len() < 2200);
        let log = node.stdout(&Action::script("seq -w 400")).await;
        assert_eq!(log.len(), 1600);
    });
}

fn inline(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture
            .node_with(|options| options.max_inline_bytes = 10)
            .await;
        let mut action = Action::script("echo output; echo error >&2");
        action.inline_logs = true;
        let result = node.execute(&action).await.result.unwrap();
        // The second does not fit.
        assert_eq!(
            (&*result.stdout_raw, &*result.stderr_raw),
            (&b"output\n"[..], &b""[..])
        );
        assert_eq!(node.log(result.stdout_digest.as_ref()).await, "output\n");
        let cached = node.cached(&action).await.unwrap();
        assert!(cached.stdout_raw.is_empty());
    });
}

fn opened_again(fixture: &Fixture) {
    fixture.run(async {
        let node = fixture.node().await;
        let script = "echo one; echo two >> /dev/stdout; echo three";
        assert_eq!(
            node.stdout(&Action::script(script)).await,
            "one\ntwo\nthree\n"
        );
    });
}
