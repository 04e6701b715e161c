//! Independent clients: libnbd's and QEMU's.

use std::path::Path;
use std::process::{Command, Output};

use rekindle_testkit::skip::skipped;

use crate::client::{Client, Style};
use crate::stand::{PAGE, Stand, content, disk_name, word};

const BYTES: usize = 2000 * PAGE + 512;

/// True if the programs are here; prints a line if not.
fn have(programs: &[&str], package: &str) -> bool {
    let missing = programs.iter().find(|program| {
        let found = Command::new(program).arg("--version").output();
        !found.is_ok_and(|output| output.status.success())
    });
    if let Some(missing) = missing {
        skipped("NBD clients", &format!("no {missing}: apt-get install {package}"));
    }
    missing.is_none()
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output().expect("it was found before");
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn uri(socket: &Path) -> String {
    format!("nbd+unix:///?socket={}", socket.display())
}

#[test]
fn nbdinfo_understands_what_is_offered() {
    if !have(&["nbdinfo"], "libnbd-bin") {
        return;
    }
    let stand = Stand::new();
    let mut base = content(51, BYTES);
    base[PAGE * 100..PAGE * 200].fill(0);
    let snapshot = stand.snapshot(&base);
    let _disk = stand.disk(BYTES, Some(&snapshot));
    let uri = uri(&stand.socket());
    let facts: serde_json::Value = serde_json::from_slice(&run("nbdinfo", &["--json", &uri]).stdout).unwrap();
    assert_eq!((&facts["protocol"], &facts["structured"]), (&"newstyle-fixed".into(), &true.into()));
    let export = &facts["exports"][0];
    assert_eq!(export["export-size"], BYTES);
    for can in ["can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"] {
        assert_eq!(export[can], true, "{can}");
    }
    assert_eq!(export["is_read_only"], false);
    assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]));
    assert_eq!(
        (&export["block_size_minimum"], &export["block_size_preferred"], &export["block_size_maximum"]),
        (&1.into(), &4096.into(), &(32 << 20).into())
    );
    assert!(text(&run("nbdinfo", &["--list", &uri])).contains("export=\"\""));
    assert_eq!(text(&run("nbdinfo", &["--size", &uri])).trim(), BYTES.to_string());
    let map = text(&run("nbdinfo", &["--map", &uri]));
    assert!(map.contains("hole,zero") && map.contains("data"), "{map}");
}

#[test]
fn nbdcopy_brings_images_in_and_out() {
    if !have(&["nbdcopy"], "libnbd-bin") {
        return;
    }
    let stand = Stand::new();
    let snapshot = stand.snapshot(&content(52, BYTES));
    let disk = stand.disk(BYTES, Some(&snapshot));
    let (uri, file) = (uri(&stand.socket()), stand.file("copy.raw"));
    run("nbdcopy", &[&uri, file.to_str().unwrap()]);
    assert!(std::fs::read(&file).unwrap() == content(52, BYTES), "out");
    let other = content(53, BYTES);
    std::fs::write(&file, &other).unwrap();
    run("nbdcopy", &["--connections=4", "--requests=16", file.to_str().unwrap(), &uri]);
    let mut client = Client::connect(&stand.socket(), Style::Oldest).unwrap();
    assert!(client.read(0, BYTES).unwrap() == other, "in");
    run("nbdcopy", &["--synchronous", "--flush", file.to_str().unwrap(), &uri]);
    let child = stand.commit(Some(&snapshot), disk.freeze().volume(disk_name()).unwrap());
    disk.end();
    assert!(stand.read(&child, BYTES) == other, "and into a snapshot");
}

#[test]
fn qemu_img_converts_and_compares() {
    if !have(&["qemu-img"], "qemu-utils") {
        return;
    }
    let stand = Stand::new();
    // A number of sectors: QEMU's raw files are.
    let model = content(54, BYTES);
    let (image, packed) = (stand.file("image.raw"), stand.file("image.qcow2"));
    std::fs::write(&image, &model).unwrap();
    let (image, packed, uri) = (image.to_str().unwrap(), packed.to_str().unwrap(), uri(&stand.socket()));
    let imported =
        rekindle_disk::ImageFile::open(image.as_ref()).unwrap().import(1 << 30, &Default::default()).unwrap();
    let snapshot = stand.commit(None, imported.into_volume(disk_name()));
    let disk = stand.disk(BYTES, Some(&snapshot));
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", image, &uri]);
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, packed]);
    run("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", packed, &uri]);
    disk.end();
    let _empty = stand.disk(BYTES, None);
    run("qemu-img", &["convert", "-n", "-f", "qcow2", "-O", "raw", packed, &uri]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", image, &uri]);
    let map: serde_json::Value =
        serde_json::from_slice(&run("qemu-img", &["map", "--output=json", "-f", "raw", &uri]).stdout)
            .unwrap();
    let zeroes = map.as_array().unwrap().iter().filter(|extent| extent["zero"] == true).count();
    assert!(zeroes > 100, "{map}");
}

#[test]
fn qemu_io_writes_zeroes_and_discards() {
    if !have(&["qemu-io"], "qemu-utils") {
        return;
    }
    let stand = Stand::new();
    let model = content(55, BYTES);
    let snapshot = stand.snapshot(&model);
    let disk = stand.disk(BYTES, Some(&snapshot));
    let uri = uri(&stand.socket());
    let io = |commands: &[&str]| {
        let mut arguments = vec!["-f", "raw", "--discard=unmap"];
        commands.iter().for_each(|command| arguments.extend(["-c", command]));
        arguments.push(&uri);
        let output = text(&run("qemu-io", &arguments));
        assert!(!output.contains("failed"), "{output}");
    };
    io(&["write -P 0x11 0 64k", "write -P 0x22 1000 3000", "write -z 8k 4k", "write -z -u 100k 200k"]);
    io(&["aio_write -P 0x33 512k 1M", "aio_write -P 0x44 2M 1M", "aio_flush", "discard 1M 64k", "flush"]);
    io(&["read -P 0x11 0 512", "read -P 0x22 1024 2560", "read -P 0 8k 4k", "read -P 0 100k 200k"]);
    io(&["read -P 0x33 512k 512k", "read -P 0x44 2M 1M", "read -P 0 1M 64k"]);
    io(&["write -f -P 0x55 4M 4k", "read -P 0x55 4M 4k"]);
    let mut client = Client::connect(&stand.socket(), Style::Structured).unwrap();
    let found = client.read(0, BYTES).unwrap();
    assert!(found[5 << 20..] == model[5 << 20..], "nothing else changed");
    assert!(found[300 << 10..512 << 10] == model[300 << 10..512 << 10]);
    let child = stand.commit(Some(&snapshot), disk.freeze().volume(disk_name()).unwrap());
    assert!(stand.read(&child, BYTES) == found);
    assert_eq!(word(found.len()), disk.bytes());
}

#[test]
fn qemu_goes_on_over_a_new_server() {
    if !have(&["qemu-io"], "qemu-utils") {
        return;
    }
    use std::io::{BufRead as _, Write as _};
    let stand = Stand::new();
    let disk = stand.disk(BYTES, None);
    let options =
        format!("driver=nbd,server.type=unix,server.path={},reconnect-delay=60", stand.socket().display());
    let mut qemu = Command::new("qemu-io")
        .args(["--image-opts", &options])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut orders = qemu.stdin.take().unwrap();
    let mut lines = std::io::BufReader::new(qemu.stdout.take().unwrap()).lines();
    let mut order = |order: &str, expected: &str| {
        writeln!(orders, "{order}").unwrap();
        let line = lines
            .by_ref()
            .map(Result::unwrap)
            .find(|line| line.contains(expected) || line.contains("failed"));
        let line = line.expect("an answer");
        assert!(!line.contains("failed"), "{line}");
    };
    order("write -P 0x61 0 64k", "wrote 65536/65536");
    let files = disk.overlay().files().unwrap();
    disk.end();
    let _next = stand.serve(BYTES, None, rekindle_disk::Overlay::recover(files).unwrap());
    order("read -P 0x61 0 64k", "read 65536/65536");
    order("write -P 0x62 64k 64k", "wrote 65536/65536");
    order("read -P 0x62 64k 64k", "read 65536/65536");
    drop(orders);
    assert!(qemu.wait().unwrap().success());
}
