//! The table of queued and running actions.

use serde::Serialize;

use super::{
    operations::Listed,
    text::{Table, bytes, clean, counted, seconds},
};

/// The digits of an operation that the table shows, and from which `gorego tail` finds it.
const SHOWN: usize = 12;

/// An action as JSON.
#[derive(Serialize)]
struct Row<'a> {
    operation: &'a str,
    action: String,
    phase: &'a str,
    age_ms: u64,
    /// The resources that the command uses; null if it does not run.
    processor_ms: Option<u64>,
    resident_bytes: Option<u64>,
    attempts: u64,
    operations: u64,
    /// The node that runs the action; empty for a queued one.
    node: &'a str,
    mnemonic: &'a str,
    target: &'a str,
    build: &'a str,
    stdout: &'a str,
    stderr: &'a str,
}

impl<'a> Row<'a> {
    fn of(listed: &'a Listed) -> Self {
        let Listed {
            name,
            metadata,
            request,
            state,
        } = listed;
        let action = metadata.action_digest.as_ref();
        let usage = state.usage.as_ref();
        Self {
            operation: name,
            action: action.map_or_else(String::new, |digest| {
                format!("{}/{}", digest.hash, digest.size_bytes)
            }),
            phase: &state.phase,
            age_ms: state.age_ms,
            processor_ms: usage.map(|usage| usage.processor_ms),
            resident_bytes: usage.map(|usage| usage.resident_bytes),
            attempts: state.attempts,
            operations: state.operations,
            node: &state.node,
            mnemonic: &request.action_mnemonic,
            target: &request.target_id,
            build: &request.tool_invocation_id,
            stdout: &metadata.stdout_stream_name,
            stderr: &metadata.stderr_stream_name,
        }
    }
}

/// Renders the actions as JSON.
pub(super) fn json(listed: &[Listed]) -> Result<Vec<u8>, String> {
    let rows: Vec<_> = listed.iter().map(Row::of).collect();
    let json = serde_json::to_vec_pretty(&rows);
    let mut json = json.map_err(|why| format!("failed to encode JSON: {why}"))?;
    json.push(b'\n');
    Ok(json)
}

/// Renders the actions as a table.
pub(super) fn render(listed: &[Listed]) -> String {
    if listed.is_empty() {
        return "No action is queued or running.\n".to_owned();
    }
    let header = [
        "Operation",
        "Phase",
        "Node",
        "Mnemonic",
        "Age",
        "CPU",
        "Memory",
        "Target",
    ];
    let mut table = Table::new(4, header);
    for action in listed {
        let usage = action.state.usage.as_ref();
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        table.rows.push(vec![
            action.id().chars().take(SHOWN).collect(),
            clean(&action.state.phase),
            if action.state.node.is_empty() {
                "-".to_owned()
            } else {
                clean(&action.state.node)
            },
            clean(&action.request.action_mnemonic),
            time(action.state.age_ms),
            or_none(usage.map(|usage| time(usage.processor_ms))),
            or_none(usage.map(|usage| bytes(usage.resident_bytes))),
            clean(&action.request.target_id),
        ]);
    }
    let queued = listed.iter().filter(|action| action.state.phase == "queue");
    let queued = queued.count();
    let running = counted((listed.len() - queued) as u64, "action");
    table.last_is_text = true;
    let lines = table.lines().join("\n");
    format!("{lines}\n{running} running, {queued} queued\n")
}

#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
fn time(ms: u64) -> String {
    seconds(Some(ms as f64 / 1000.0))
}

#[cfg(test)]
mod tests {
    use reapi::{
        gorego::{ActionState, ResourceUsage},
        v2::RequestMetadata,
    };

    use super::*;

    fn listed(id: &str, phase: &str, target: &str, usage: Option<ResourceUsage>) -> Listed {
        Listed {
            name: format!("main/operations/build-7-12-{id}"),
            request: RequestMetadata {
                target_id: target.to_owned(),
                action_mnemonic: "CppCompile".to_owned(),
                ..RequestMetadata::default()
            },
            state: ActionState {
                phase: phase.to_owned(),
                age_ms: 61_500,
                node: if phase == "run" { "build-7" } else { "" }.to_owned(),
                usage,
                ..ActionState::default()
            },
            ..Listed::default()
        }
    }

    #[test]
    fn actions_are_a_table_without_control_characters() {
        let usage = ResourceUsage {
            processor_ms: 1500,
            resident_bytes: 300 << 20,
        };
        let actions = [
            listed("0123456789abcdef", "run", "//app:main", Some(usage)),
            listed("123456789abcdef0", "queue", "//app:\u{1b}[2J", None),
        ];
        assert_eq!(
            render(&actions),
            "Operation     Phase  Node     Mnemonic     Age    CPU   Memory  Target\n\
             0123456789ab  run    build-7  CppCompile  62 s  1.5 s  300 MiB  //app:main\n\
             123456789abc  queue  -        CppCompile  62 s      -        -  //app:\\u{1b}[2J\n\
             1 action running, 1 queued\n"
        );
        assert_eq!(render(&[]), "No action is queued or running.\n");
        let json: serde_json::Value = serde_json::from_slice(&json(&actions).unwrap()).unwrap();
        assert_eq!(json[0]["processor_ms"], 1500);
        assert_eq!(json[1]["resident_bytes"], serde_json::Value::Null);
        assert_eq!(json[0]["node"], "build-7");
        assert_eq!(json[1]["target"], "//app:\u{1b}[2J");
    }
}
