//! The API on its socket, as Firecracker's server speaks HTTP.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::configured::{Action, BalloonUpdate, CreateSnapshot, LoadSnapshot, VmState};
use super::settings::Step;
use super::vm::{Life, Peer};

/// Answers requests for ever, one connection a thread.
pub(super) fn serve(peer: &Arc<Peer>, socket: &Path) {
    let listener = UnixListener::bind(socket).expect("Failed to open the API socket");
    for stream in listener.incoming() {
        let (peer, stream) = (Arc::clone(peer), stream.expect("somebody connects"));
        thread::spawn(move || while answer_one(&peer, &mut BufReader::new(&stream)) == Some(()) {});
    }
}

struct Request {
    method: String,
    path: String,
    body: Vec<u8>,
}

fn answer_one(peer: &Peer, stream: &mut BufReader<&UnixStream>) -> Option<()> {
    let request = read(stream)?;
    let call = format!("{} {}", request.method, request.path);
    peer.note_request(&format!("{call} {}", String::from_utf8_lossy(&request.body)));
    let refused = peer.settings().refuses.get(&call).cloned();
    let done = match refused {
        Some(why) => Err(why),
        None => route(peer, &request),
    };
    let is_dirty = call == "PUT /snapshot/load" && done.is_err();
    let (status, body) = match done {
        Ok(Value::Null) => (204, String::new()),
        Ok(body) => (200, body.to_string()),
        Err(why) => {
            peer.log(&format!("Received Error. Status code: 400 Bad Request. Message: {why}"));
            (400, json!({ "fault_message": why }).to_string())
        }
    };
    let mut answer = format!("HTTP/1.1 {status} \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n");
    if !body.is_empty() {
        answer += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    }
    answer += "\r\n";
    answer += &body;
    stream.get_mut().write_all(answer.as_bytes()).ok()?;
    // A process that could not load is good for nothing any more.
    if is_dirty {
        std::process::exit(152);
    }
    Some(())
}

fn read(stream: &mut BufReader<&UnixStream>) -> Option<Request> {
    let mut line = String::new();
    stream.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(Request { method, path, body })
}

fn route(peer: &Peer, request: &Request) -> Result<Value, String> {
    let words: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
    match (request.method.as_str(), &words[..]) {
        ("GET", ["version"]) => Ok(json!({ "firecracker_version": peer.settings().version })),
        ("GET", [""]) => {
            let state = match peer.vm().life {
                Life::NotStarted => "Not started",
                Life::Running => "Running",
                Life::Paused => "Paused",
            };
            let version = peer.settings().version;
            Ok(json!({ "app_name": "Firecracker", "id": "peer", "state": state, "vmm_version": version }))
        }
        ("PUT", ["actions"]) => {
            let action: Action = parse(request)?;
            match action.action_type.as_str() {
                "InstanceStart" => done(peer.start()),
                other => Err(format!("unknown variant `{other}`")),
            }
        }
        ("PATCH", ["vm"]) => done(peer.set_state(&parse::<VmState>(request)?.state)),
        ("PATCH", ["balloon"]) => done(peer.set_balloon(parse::<BalloonUpdate>(request)?.amount_mib)),
        ("PUT", ["snapshot", "create"]) => done(peer.create(&parse::<CreateSnapshot>(request)?)),
        ("PUT", ["snapshot", "load"]) => {
            check_load_fields(peer, request)?;
            let load: LoadSnapshot = parse(request)?;
            if load.mem_backend.backend_type != "Uffd" {
                return Err("this peer serves memory by userfaultfd only".to_owned());
            }
            done(peer.load(&load))
        }
        ("PUT", _) => configure(peer, request, &words),
        _ => Err(format!("Invalid request method and/or path: {} {}.", request.method, request.path)),
    }
}

fn configure(peer: &Peer, request: &Request, words: &[&str]) -> Result<Value, String> {
    peer.step(Step::Configure);
    let mut vm = peer.vm();
    if vm.life != Life::NotStarted {
        return Err("The requested operation is not supported after starting the microVM.".to_owned());
    }
    match words {
        ["machine-config"] => vm.configured.machine = Some(parse(request)?),
        ["boot-source"] => vm.configured.boot = Some(parse(request)?),
        ["drives", id] => {
            let drive: super::configured::Drive = parse(request)?;
            same_id(id, &drive.drive_id)?;
            vm.configured.drives.push(drive);
        }
        ["network-interfaces", id] => {
            let interface: super::configured::Interface = parse(request)?;
            same_id(id, &interface.iface_id)?;
            vm.configured.interfaces.push(interface);
        }
        ["vsock"] => vm.configured.vsock = Some(parse(request)?),
        ["balloon"] => vm.configured.balloon = Some(parse(request)?),
        _ => return Err(format!("Invalid request method and/or path: PUT {}.", request.path)),
    }
    Ok(Value::Null)
}

/// Fields that the version it plays does not have.
fn check_load_fields(peer: &Peer, request: &Request) -> Result<(), String> {
    let settings = peer.settings();
    let body: Value = parse(request)?;
    let fields = body.as_object().ok_or("a load is an object")?;
    for (field, since) in
        [("network_overrides", (1, 12)), ("track_dirty_pages", (1, 13)), ("clock_realtime", (1, 16))]
    {
        if fields.contains_key(field) && !settings.is_since(since.0, since.1) {
            return Err(format!(
                "An error occurred when deserializing the json body of a request: unknown field `{field}`."
            ));
        }
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(request: &Request) -> Result<T, String> {
    serde_json::from_slice(&request.body)
        .map_err(|error| format!("An error occurred when deserializing the json body of a request: {error}."))
}

fn same_id(in_path: &str, in_body: &str) -> Result<(), String> {
    match in_path == in_body {
        true => Ok(()),
        false => Err("The id from the path does not match the id from the body!".to_owned()),
    }
}

fn done(result: Result<(), String>) -> Result<Value, String> {
    result.map(|()| Value::Null)
}
