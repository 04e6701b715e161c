//! Every route, by the client and by hand, and every problem.

use std::collections::BTreeMap;
use std::time::Duration;

use rekindle_api::client::ClientError;
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::{
    CaptureMemory, CaptureSource, CheckpointSandbox, CreateSandbox, ForkSandbox, Labels, ListQuery,
    OpenFaultSocket, PageLimit, PauseSandbox, ResumeSandbox, ResumeSnapshot, SandboxState, SnapshotState,
    WriteTracking,
};
use serde_json::json;

use crate::raw;
use crate::served::{Served, wanted};

fn labels(of: &[(&str, &str)]) -> Labels {
    let labels: BTreeMap<_, _> =
        of.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    labels.try_into().unwrap()
}

#[test]
fn sandboxes_are_made_shown_listed_and_removed() {
    let served = Served::new();
    let client = served.client();
    let made = served.sandbox("web");
    assert_eq!(client.sandbox("web").unwrap(), made);
    assert_eq!(client.sandbox(&made.id.to_string()).unwrap(), made);
    assert_eq!(client.all_sandboxes(&[]).unwrap(), std::slice::from_ref(&made));
    assert_eq!(client.stop_sandbox("web").unwrap().state, SandboxState::Stopped);
    client.remove_sandbox("web").unwrap();
    assert_eq!(client.sandbox("web").unwrap_err().code(), Some(Code::NotFound));
}

#[test]
fn a_sandbox_is_paused_resumed_forked_and_told_things() {
    let served = Served::new();
    let client = served.client();
    let sandbox = served.sandbox("web");
    let labels = labels(&[("team", "a b/ü")]);
    let pause = PauseSandbox { name: Some("first".parse().expect("it is a name")), labels };
    let snapshot = client.pause_sandbox("web", None, &pause).unwrap();
    assert_eq!((snapshot.name.as_deref(), &snapshot.labels), (Some("first"), &pause.labels));
    assert_eq!(
        client.all_snapshots(&["team=a b/ü".to_owned().try_into().unwrap()]).unwrap(),
        std::slice::from_ref(&snapshot)
    );
    assert_eq!(client.all_snapshots(&["team=b".to_owned().try_into().unwrap()]).unwrap(), []);
    let refused = client.pause_sandbox("web", None, &PauseSandbox::default()).unwrap_err();
    assert_eq!(
        (refused.code(), &refused.problem().unwrap().sandboxes),
        (Some(Code::WrongState), &vec![sandbox.id])
    );
    assert_eq!(client.resume_sandbox("web", &ResumeSandbox::default()).unwrap().state, SandboxState::Running);
    let name = Some("fork".parse().expect("it is a name"));
    let fork = ForkSandbox { count: 3_u32.try_into().expect("a few"), name, ..ForkSandbox::default() };
    let forks = client.fork_sandbox("web", None, &fork).unwrap();
    let names: Vec<_> = forks.iter().filter_map(|fork| fork.name.as_deref()).collect();
    assert_eq!(names, ["fork-1", "fork-2", "fork-3"]);
    let told = client.tell_guest("web", &json!({ "command": "nod", "pages": 3 })).unwrap();
    assert_eq!(told["told"], json!({ "command": "nod", "pages": 3 }));
}

#[test]
fn a_sandbox_is_checkpointed_once_under_a_key_and_goes_on() {
    let served = Served::new();
    let client = served.client();
    let sandbox = served.sandbox("web");
    let labels = labels(&[("team", "a")]);
    let how =
        CheckpointSandbox { name: Some("moment".parse().expect("it is a name")), labels, checkpoints: None };
    let snapshot = client.checkpoint_sandbox("web", Some("key"), &how).unwrap();
    assert_eq!((snapshot.name.as_deref(), &snapshot.labels), (Some("moment"), &how.labels));
    assert_eq!(client.checkpoint_sandbox("web", Some("key"), &how).unwrap(), snapshot);
    let goes_on = client.sandbox("web").unwrap();
    assert_eq!((goes_on.state, goes_on.pid), (SandboxState::Running, sandbox.pid));
    assert_eq!((goes_on.origin, goes_on.snapshot), (Some(snapshot.id), Some(snapshot.id)));
    client.pause_sandbox("web", None, &PauseSandbox::default()).unwrap();
    let refused = client.checkpoint_sandbox("web", None, &CheckpointSandbox::default()).unwrap_err();
    assert_eq!(refused.code(), Some(Code::WrongState));
}

#[test]
fn snapshots_are_waited_for_verified_placed_resumed_and_deleted() {
    let served = Served::new();
    let client = served.client();
    served.sandbox("web");
    let id = client.pause_sandbox("web", None, &PauseSandbox::default()).unwrap().id;
    let reference = id.to_string();
    assert_eq!(client.placement(&reference).unwrap().layers, []);
    let not_yet = client.wait_snapshot(&reference, SnapshotState::Sealed, Duration::ZERO).unwrap_err();
    assert_eq!((not_yet.code(), &not_yet.problem().unwrap().snapshots), (Some(Code::NotYet), &vec![id]));
    let waiting = std::thread::scope(|threads| {
        let wait = || client.wait_snapshot(&reference, SnapshotState::Sealed, Duration::from_secs(1800));
        let waiting = threads.spawn(wait);
        served.fake.advance(id, SnapshotState::Published);
        waiting.join().unwrap().unwrap()
    });
    assert_eq!(waiting.state, SnapshotState::Published);
    for state in [SnapshotState::Discarded, SnapshotState::Lost] {
        let refused = client.wait_snapshot(&reference, state, Duration::ZERO).unwrap_err();
        assert_eq!(refused.code(), Some(Code::InvalidRequest), "{state:?}");
    }
    assert_eq!(client.placement(&reference).unwrap().layers.len(), 1);
    assert_eq!(client.verify_snapshot(&reference).unwrap().wrong_pages, 0);
    let resumed = client.resume_snapshot(&reference, None, &ResumeSnapshot::default()).unwrap();
    assert_eq!(resumed.iter().map(|sandbox| sandbox.origin).collect::<Vec<_>>(), [Some(id)]);
    let refused = client.delete_snapshot(&reference).unwrap_err();
    assert_eq!(refused.code(), Some(Code::WrongState), "a sandbox is paused in it");
    client.remove_sandbox("web").unwrap();
    client.delete_snapshot(&reference).unwrap();
    assert_eq!(client.snapshot(&reference).unwrap_err().code(), Some(Code::NotFound));
}

#[test]
fn fault_sockets_are_opened_listed_captured_and_closed() {
    let served = Served::new();
    let client = served.client();
    served.sandbox("web");
    let snapshot = client.pause_sandbox("web", None, &PauseSandbox::default()).unwrap();
    let wanted = OpenFaultSocket {
        snapshot: snapshot.id.into(),
        serve_before_seal: Some(true),
        tracking: WriteTracking::Always,
    };
    let socket = client.open_fault_socket(&wanted).unwrap();
    assert_eq!(client.fault_sockets().unwrap(), std::slice::from_ref(&socket));
    assert_eq!(client.fault_socket(socket.id).unwrap(), socket);
    let blobs = [("state".to_owned(), "AAEC".to_owned())].into();
    let source = CaptureSource::FaultSocket { id: socket.id };
    let capture = CaptureMemory { source, name: None, domain: None, labels: Labels::new(), blobs };
    assert_eq!(client.capture_memory(&capture).unwrap().parent, Some(snapshot.id));
    client.close_fault_socket(socket.id).unwrap();
    assert_eq!(client.close_fault_socket(socket.id).unwrap_err().code(), Some(Code::NotFound));
}

#[test]
fn the_daemon_is_asked_how_it_is() {
    let served = Served::new();
    let client = served.client();
    assert!(client.health().unwrap().healthy);
    assert!(client.readiness().unwrap().ready);
    served.fake.not_ready(&["the store does not answer"]);
    assert_eq!(client.readiness().unwrap().reasons, ["the store does not answer"]);
    assert_eq!(raw::ask(&served.socket(), "GET /v1/ready", "", "").status, 503);
    assert_eq!(client.version().unwrap().api, rekindle_api::API_VERSION);
    assert!(client.metrics().unwrap().ends_with("# EOF\n"));
    let metrics = raw::ask(&served.socket(), "GET /metrics", "", "");
    assert!(metrics.fields.contains("content-type: application/openmetrics-text"));
}

#[test]
fn lists_come_in_pages() {
    let served = Served::new();
    let client = served.client();
    let made: Vec<_> = (0..5).map(|number| served.sandbox(&format!("s{number}"))).collect();
    let first = client
        .sandboxes(&ListQuery { limit: PageLimit::try_from(2_u32).ok(), ..ListQuery::default() })
        .unwrap();
    assert_eq!((first.sandboxes.as_slice(), first.next), (&made[..2], Some(made[1].id)));
    let last = ListQuery { limit: PageLimit::try_from(3_u32).ok(), after: first.next, labels: Vec::new() };
    let last = client.sandboxes(&last).unwrap();
    assert_eq!((last.sandboxes.as_slice(), last.next), (&made[2..], None));
}

#[test]
fn the_same_request_under_the_same_key_is_done_once() {
    let served = Served::new();
    let client = served.client();
    let first = client.create_sandbox(Some("a-key"), &wanted("web")).unwrap();
    assert_eq!(client.create_sandbox(Some("a-key"), &wanted("web")).unwrap(), first);
    let other = client.create_sandbox(Some("a-key"), &wanted("other")).unwrap_err();
    assert_eq!(other.code(), Some(Code::IdempotencyMismatch));
    let pause = PauseSandbox::default();
    let paused = client.pause_sandbox("web", Some("b-key"), &pause).unwrap();
    assert_eq!(client.pause_sandbox("web", Some("b-key"), &pause).unwrap(), paused);
    for field in
        ["Idempotency-Key: \r\n", "Idempotency-Key: a b\r\n", "Idempotency-Key: a\r\nIdempotency-Key: b\r\n"]
    {
        assert_eq!(
            raw::ask(&served.socket(), "POST /v1/sandboxes/web/pause", field, "").code(),
            "invalid_request"
        );
    }
    let long = format!("Idempotency-Key: {}\r\n", "x".repeat(256));
    assert_eq!(raw::ask(&served.socket(), "POST /v1/sandboxes/web/pause", &long, "").status, 400);
}

#[test]
fn what_is_made_says_where_it_is() {
    let served = Served::new();
    let socket = served.socket();
    let made = raw::ask(&socket, "POST /v1/sandboxes", "", r#"{"name":"web","memory_bytes":4096}"#);
    let id = made.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(made.status, 201);
    assert!(made.fields.contains(&format!("location: /v1/sandboxes/{id}")), "{made:?}");
    let paused = raw::ask(&socket, "POST /v1/sandboxes/web/pause", "", "");
    let id = paused.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(paused.status, 201);
    assert!(paused.fields.contains(&format!("location: /v1/snapshots/{id}")), "{paused:?}");
    assert_eq!(raw::ask(&socket, "DELETE /v1/sandboxes/web", "", "").status, 204);
}

#[test]
fn a_body_that_says_nothing_may_be_absent() {
    let served = Served::new();
    served.sandbox("web");
    for body in ["", "{}", " null "] {
        assert_eq!(raw::ask(&served.socket(), "POST /v1/sandboxes/web/pause", "", body).status, 201);
        assert_eq!(raw::ask(&served.socket(), "POST /v1/sandboxes/web/resume", "", body).status, 200);
        assert_eq!(raw::ask(&served.socket(), "POST /v1/sandboxes/web/fork", "", body).status, 201);
    }
}

#[test]
fn every_code_arrives_with_its_status_and_its_ids() {
    let served = Served::new();
    let client = served.client();
    let about = served.sandbox("web").id;
    // A pause may fail in nearly every way: a wrong method is answered before any operation, and only a resume asks other
    // nodes.
    for code in Code::ALL.into_iter().filter(|code| ![Code::WrongMethod, Code::PeerFailed].contains(code)) {
        served.fake.meet(Some(Problem::new(code, "what to do").sandbox(about)));
        let error = client.pause_sandbox("web", None, &PauseSandbox::default()).unwrap_err();
        assert_eq!((error.code(), error.to_string()), (Some(code), "what to do".to_owned()));
        let problem = error.problem().unwrap();
        assert_eq!((problem.status, problem.sandboxes.as_slice()), (code.status(), [about].as_slice()));
        assert_eq!(problem.kind, format!("urn:rekindle:problem:{}", code.name()));
        let answer = raw::ask(&served.socket(), "POST /v1/sandboxes/web/pause", "", "");
        assert_eq!((answer.status, answer.code().as_str()), (code.status(), code.name()));
        assert_eq!(answer.fields.contains("retry-after:"), code.passes());
    }
    served.fake.meet(Some(Problem::new(Code::PeerFailed, "what to do")));
    let error = client.resume_snapshot("base", None, &ResumeSnapshot::default()).unwrap_err();
    assert_eq!((error.code(), error.to_string()), (Some(Code::PeerFailed), "what to do".to_owned()));
}

#[test]
fn what_is_not_there_is_a_problem_too() {
    let served = Served::new();
    let socket = served.socket();
    for line in
        ["GET /", "GET /v1", "GET /v2/sandboxes", "POST /v1/sandboxes/web/nothing", "GET /v1/sandboxes/"]
    {
        let answer = raw::ask(&socket, line, "", "");
        assert_eq!((answer.status, answer.code().as_str()), (404, "not_found"), "{line}");
    }
    let answer = raw::ask(&socket, "PUT /v1/sandboxes", "", "");
    assert_eq!((answer.status, answer.code().as_str()), (405, "wrong_method"));
    assert!(answer.fields.contains("allow: get,head,post") || answer.fields.contains("allow: post,get,head"));
}

#[test]
fn what_cannot_be_understood_is_refused_in_words() {
    let served = Served::new();
    let socket = served.socket();
    for (line, body, word) in [
        ("POST /v1/sandboxes", "", "memory_bytes"),
        ("POST /v1/sandboxes", "[]", "the body"),
        ("POST /v1/sandboxes", r#"{"memory_bytes":4096,"nmae":"x"}"#, "nmae"),
        ("POST /v1/sandboxes", r#"{"memory_bytes":4096,"name":""}"#, "name"),
        ("POST /v1/sandboxes", r#"{"memory_bytes":-1}"#, "-1"),
        ("POST /v1/sandboxes", r#"{"memory_bytes":4097}"#, "4097"),
        ("POST /v1/sandboxes", r#"{"memory_bytes":4096"#, "line 1"),
        ("POST /v1/sandboxes/web/guest", "{}", "command"),
        ("POST /v1/sandboxes", r#"["a",{},"process",4096,"shared",null]"#, "an object"),
        ("POST /v1/sandboxes/web/pause", r#"["a",{}]"#, "an object"),
        ("POST /v1/sandboxes/web/resume", "[true,null,false]", "an object"),
        ("POST /v1/sandboxes/web/fork", r#"[1,"a",{}]"#, "an object"),
        ("POST /v1/sandboxes/web/guest", r#"["state"]"#, "an object"),
        ("POST /v1/sandboxes/web/console", r#"["AAAA"]"#, "an object"),
        ("POST /v1/snapshots/abcd/resume", r#"[1,"a",{},true,null]"#, "an object"),
        ("POST /v1/fault-sockets", r#"["abcd",true]"#, "an object"),
        ("POST /v1/captures", r#"[{"kind":"memfd","pid":7,"fd":3},"a",{},{}]"#, "an object"),
        ("POST /v1/captures", r#"{"source":["memfd",7,3]}"#, "an object"),
        ("POST /v1/captures", r#"{"source":{"kind":"process","pid":7,"regions":[[0,4096,0]]}}"#, "an object"),
        ("POST /v1/sandboxes", r#"{"memory_bytes":4096,"vmm":"qemu","machine":["/k"]}"#, "an object"),
        (
            "POST /v1/sandboxes",
            r#"{"memory_bytes":4096,"machine":{"kernel":"/k","disks":[["a","/b"]]}}"#,
            "an object",
        ),
        ("POST /v1/sandboxes", r#"{"memory_bytes":4096,"vmm":{"process":null}}"#, "a word"),
        ("POST /v1/sandboxes", r#"{"memory_bytes":4096,"labels":{"a":"1","a":"2"}}"#, "`a` comes twice"),
        ("POST /v1/sandboxes", r#"{"memory_bytes":4096,"labels":{"rekindle/a":"1"}}"#, "rekindle gives"),
        ("GET /v1/sandboxes?limit=1&limit=2", "", "`limit` comes twice: say it once"),
        ("GET /v1/sandboxes?limit=0", "", "limit"),
        ("GET /v1/sandboxes?limit=1001", "", "1001"),
        ("GET /v1/sandboxes?limt=1", "", "limt"),
        ("GET /v1/sandboxes?after=web", "", "after"),
        ("GET /v1/sandboxes?label=team", "", "label"),
        ("GET /v1/snapshots/abcd/wait", "", "state"),
        ("GET /v1/snapshots/abcd/wait?state=saved", "", "saved"),
        ("GET /v1/snapshots/abcd/wait?state=sealed&timeout_seconds=601", "", "601"),
        ("GET /v1/fault-sockets/web", "", "web"),
        ("GET /v1/sandboxes/%00", "", "name"),
        ("GET /v1/sandboxes/%ff", "", "UTF-8"),
        ("GET /v1/sandboxes/a%2Fb", "", "a/b"),
    ] {
        let answer = raw::ask(&socket, line, "", body);
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert_eq!((answer.status, answer.code().as_str()), (400, "invalid_request"), "{line} {body}");
        assert!(detail.contains(word), "{line} {body}: {detail}");
        assert!(!detail.contains("deserialize"), "{line} {body}: {detail}");
    }
}

#[test]
fn a_bug_is_a_problem_and_nothing_else_is_hurt() {
    let served = Served::new();
    served.fake.panic_on_version();
    assert_eq!(served.client().version().unwrap_err().code(), Some(Code::Internal));
    assert!(served.client().health().unwrap().healthy);
}

#[test]
fn a_daemon_that_is_not_there_is_said_to_be() {
    let directory = tempfile::tempdir().unwrap();
    let client = rekindle_api::client::Client::of_socket(directory.path().join("api.sock"));
    let error = client.health().unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }));
    assert!(error.to_string().contains("is `rekindle serve` running?"), "{error}");
}

#[test]
fn lists_are_of_what_has_all_of_the_labels_that_are_asked_for() {
    let served = Served::new();
    let client = served.client();
    for (name, a, b) in [("first", "1", "1"), ("second", "1", "2"), ("third", "2", "2")] {
        let labels = labels(&[("a", a), ("b", b)]);
        client.create_sandbox(None, &CreateSandbox { labels, ..wanted(name) }).unwrap();
    }
    let answer = raw::ask(&served.socket(), "GET /v1/sandboxes?label=a=1&label=b=2", "", "");
    let listed = answer.json()["sandboxes"].as_array().unwrap().clone();
    assert_eq!(listed.iter().map(|one| one["name"].as_str().unwrap()).collect::<Vec<_>>(), ["second"]);
    let labels = ["a=1", "b=1"].map(|label| label.to_owned().try_into().unwrap());
    let listed = client.all_sandboxes(&labels).unwrap();
    assert_eq!(listed.iter().filter_map(|one| one.name.as_deref()).collect::<Vec<_>>(), ["first"]);
}

#[test]
fn a_long_word_of_a_request_does_not_come_back_whole() {
    let served = Served::new();
    let long = "x".repeat(20_000);
    for (line, body) in [
        (format!("GET /v1/sandboxes/{long}"), String::new()),
        (format!("GET /v1/{long}"), String::new()),
        (format!("GET /v1/sandboxes?{long}=1"), String::new()),
        (format!("GET /v1/sandboxes?label={long}"), String::new()),
        ("POST /v1/sandboxes".to_owned(), format!(r#"{{"memory_bytes":4096,"name":"{long}"}}"#)),
        ("POST /v1/sandboxes".to_owned(), format!(r#"{{"memory_bytes":4096,"vmm":"{long}"}}"#)),
        ("POST /v1/sandboxes".to_owned(), format!(r#"{{"{long}":1}}"#)),
    ] {
        let answer = raw::ask(&served.socket(), &line, "", &body);
        assert!(answer.status >= 400 && answer.body.len() < 3000, "{}: {}", &line[..20], answer.body);
    }
}
