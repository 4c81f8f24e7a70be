use super::*;

fn digests(known: &[KnownAction]) -> String {
    let digests: Vec<_> = known.iter().map(|known| known.action.as_str()).collect();
    digests.join(" ")
}

fn names(action: &str, target: &str, mnemonic: &str) -> ActionNames {
    ActionNames {
        action: action.to_owned(),
        instance: String::new(),
        target: target.to_owned(),
        mnemonic: mnemonic.to_owned(),
    }
}

fn compile(action: &str) -> ActionNames {
    names(action, "//:lib", "CppCompile")
}

#[test]
fn candidates_are_the_last_actions_with_the_same_output() {
    let mut known = KnownActions::default();
    for (action, output, at) in [
        ("a", "bazel-out/k8-fastbuild/bin/x.o", 1),
        ("b", "bazel-out/k8-opt/bin/x.o", 2),
        ("c", "bazel-out/k8-opt/bin/y.o", 3),
    ] {
        known.record(&compile(action), Some(output), at);
    }
    let find = |names, output, before| digests(&known.candidates(&names, output, before));
    let x = Some("bazel-out/k8-dbg/bin/x.o");
    assert_eq!(find(compile("new"), x, 9), "b a");
    assert_eq!(find(compile("b"), x, 9), "a");
    assert_eq!(find(compile("new"), x, 1), "a");
    assert_eq!(find(compile("new"), Some("z.o"), 9), "c b a");
    assert_eq!(find(compile("new"), None, 9), "c b a");
    assert_eq!(find(names("new", "//:lib", "CppLink"), x, 9), "");
    assert_eq!(find(names("new", "//:lob", "CppCompile"), x, 9), "");
}

#[test]
fn a_later_hit_of_a_known_action_does_not_hide_it_from_an_earlier_miss() {
    let mut known = KnownActions::default();
    known.record(&compile("a"), Some("o"), 1);
    known.record(&compile("a"), Some("o"), 5);
    assert_eq!(digests(&known.candidates(&compile("b"), Some("o"), 2)), "a");
    assert_eq!(digests(&known.candidates(&compile("b"), Some("o"), 0)), "");
}

#[test]
fn the_actions_of_an_output_are_those_last_recorded() {
    let mut known = KnownActions::default();
    for (action, at) in [("a", 1), ("b", 2), ("c", 3), ("a", 4), ("d", 5)] {
        known.record(&compile(action), Some("o"), at);
    }
    let candidates = known.candidates(&compile("new"), Some("o"), 9);
    assert_eq!(digests(&candidates), "d a c");
    assert_eq!(known.changes(), 4);
}

#[test]
fn a_file_without_first_times_is_read() {
    let known: KnownAction =
        serde_json::from_str(r#"{"action":"a/1","instance":"","at_ms":5}"#).unwrap();
    assert_eq!((known.at_ms, known.first_ms), (5, 0));
}

#[test]
fn the_last_result_of_an_action_is_remembered_and_survives_saving() {
    let mut known = KnownActions::default();
    known.record(&compile("a"), Some("o"), 1);
    known.record(&compile("a"), Some("o"), 5);
    let mut copy = KnownActions::default();
    copy.copy(&known, &known.outputs());
    copy.copy(&known, &[0]);
    let saved = serde_json::to_vec(&copy).unwrap();
    let restored: KnownActions = serde_json::from_slice(&saved).unwrap();
    let restored = restored.restored(7);
    assert_eq!(restored.since_ms(), 7);
    assert_eq!(restored.last_result("a").unwrap().at_ms, 5);
    assert_eq!(restored.last_result("b"), None);
    assert_eq!(digests(&restored.candidates(&compile("b"), None, 9)), "a");
}

#[test]
fn an_action_without_target_or_output_is_remembered_and_compared_with_none() {
    let mut known = KnownActions::default();
    known.record(&names("a", "", ""), Some("o"), 1);
    known.record(&names("b", "", ""), Some("o"), 2);
    known.record(&compile("c"), None, 3);
    for (action, at) in [("a", 1), ("b", 2), ("c", 3)] {
        assert_eq!(known.last_result(action).unwrap().at_ms, at);
    }
    assert_eq!(
        digests(&known.candidates(&names("d", "", ""), Some("o"), 9)),
        ""
    );
    assert_eq!(digests(&known.candidates(&compile("d"), Some("o"), 9)), "c");
}

#[test]
fn an_action_without_output_belongs_to_the_last_target_that_named_it() {
    let mut known = KnownActions::default();
    for number in 0..10 {
        known.record(&names("a", &number.to_string(), "Test"), None, number);
    }
    assert_eq!(known.families.len(), 1);
    let find = |target| digests(&known.candidates(&names("b", target, "Test"), None, 99));
    assert_eq!((find("8"), find("9")), (String::new(), "a".to_owned()));
}

#[test]
fn an_action_that_moved_to_another_output_outlives_the_old_one() {
    let mut known = KnownActions::default();
    known.record(&compile("moved"), Some("old"), 1);
    known.record(&compile("moved"), Some("new"), 2);
    for (number, action) in (3..).zip(["a", "b", "c", "d"]) {
        known.record(&compile(action), Some("old"), number);
    }
    assert_eq!(known.last_result("moved").unwrap().at_ms, 2);
    let saved = serde_json::to_vec(&known).unwrap();
    let restored: KnownActions = serde_json::from_slice(&saved).unwrap();
    assert_eq!(restored.restored(7).last_result("moved").unwrap().at_ms, 2);
}

#[test]
fn the_index_is_bounded_and_drops_the_oldest() {
    let mut known = KnownActions::default();
    for number in 0..=MAX_OUTPUTS as u64 {
        let output = number.to_string();
        known.record(&compile(&output), Some(&output), number);
    }
    assert_eq!(known.outputs.len(), MAX_OUTPUTS + 1 - DROPPED);
    assert_eq!(known.actions.len(), known.outputs.len());
    let in_families: usize = known.families.values().map(HashSet::len).sum();
    assert_eq!(in_families, known.outputs.len());
    assert_eq!(known.last_result("0"), None);
    let newest = MAX_OUTPUTS.to_string();
    assert!(known.last_result(&newest).is_some());
    for number in 0..10 {
        known.record(&compile(&format!("again {number}")), Some("0"), number);
    }
    let candidates = known.candidates(&compile(""), Some("0"), 99);
    assert_eq!(candidates.len(), MAX_ACTIONS);
}
