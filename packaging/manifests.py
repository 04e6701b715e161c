#!/usr/bin/env python3
"""Checks the manifests for Kubernetes and Nomad: against the schemas of Kubernetes, against themselves and the control
API, and by running what they run to label nodes. packaging/check.sh installs what it imports."""

import json
import os
import pathlib
import re
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from http.server import BaseHTTPRequestHandler

import hcl2
import kubernetes_validate
import yaml

HERE = pathlib.Path(__file__).parent
# The first version that has sidecars by default, and the newest one whose schemas are known.
VERSIONS = ["1.29", "1.37"]
PATIENCE = 60
LINES = "rekindle/open=true\nrekindle/running=2\nrekindle/layers-gib=3\nrekindle/snapshot-aa=local\n"
CHANGED = "rekindle/open=false\nrekindle/running=2\nrekindle/layers-gib=3\nrekindle/snapshot-bb=warm\n"


def must(holds, what):
    if not holds:
        sys.exit(f"manifests: {what}")


class Told(BaseHTTPRequestHandler):
    """Notes the bodies of requests."""

    def note(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.told.append((self.command, self.path, self.headers, json.loads(body)))
        self.send_response(200)
        self.end_headers()

    do_PATCH = do_POST = note

    def log_message(self, *_):
        pass

    def address_string(self):
        return "a script"


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True

    def __init__(self, address, family):
        self.address_family, self.told = family, []
        super().__init__(address, Told)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def newest(self, number):
        until = time.monotonic() + PATIENCE
        while len(self.told) < number and time.monotonic() < until:
            time.sleep(0.05)
        must(len(self.told) == number, f"{len(self.told)} requests came, and not {number}")
        return self.told[-1]


def labelling(script, env, server, lines_of):
    """Runs `script` while the file says different things, and gives what it asked for each."""
    with tempfile.TemporaryDirectory() as place:
        file = pathlib.Path(place, "placement")
        env = {"PATH": os.environ["PATH"], "PLACEMENT_FILE": str(file), **env(pathlib.Path(place))}
        server = server(pathlib.Path(place))
        if server.address_family == socket.AF_INET:
            env["API_SERVER"] = f"http://127.0.0.1:{server.server_address[1]}"
        file.write_text(LINES)
        running = subprocess.Popen(["sh", "-c", script], env=env)
        try:
            asked = [lines_of(server.newest(1))]
            file.write_text(CHANGED)
            asked.append(lines_of(server.newest(2)))
            running.send_signal(signal.SIGTERM)
            asked.append(lines_of(server.newest(3)))
            must(running.wait(PATIENCE) == 0, "the script that labels does not end well")
        finally:
            running.kill()
        server.shutdown()
        return asked


def kubernetes():
    documents = list(yaml.safe_load_all((HERE / "kubernetes/rekindle.yaml").read_text()))
    for version in VERSIONS:
        for document in documents:
            kubernetes_validate.validate(document, version, strict=True)
    by_kind = {document["kind"]: document for document in documents}
    namespace = by_kind["Namespace"]["metadata"]["name"]
    daemons, service, settings = by_kind["DaemonSet"]["spec"], by_kind["Service"], by_kind["ConfigMap"]
    pod = daemons["template"]["spec"]
    labels = daemons["template"]["metadata"]["labels"]
    must(pod["hostNetwork"] and pod["dnsPolicy"] == "ClusterFirstWithHostNet", "the network of the host")
    for selector in (daemons["selector"]["matchLabels"], service["spec"]["selector"]):
        must(selector.items() <= labels.items(), f"{selector} selects no pod")
    must(by_kind["ClusterRoleBinding"]["subjects"][0]["namespace"] == namespace, "the account's namespace")
    must(pod["serviceAccountName"] == by_kind["ServiceAccount"]["metadata"]["name"], "the account's name")
    host = f'{service["metadata"]["name"]}.{namespace}.svc.cluster.local:{service["spec"]["ports"][0]["port"]}'
    must(f'dns = ["{host}"]' in settings["data"]["rekindle.toml"], f"peers.dns is not {host}")
    volumes = {volume["name"] for volume in pod["volumes"]}
    paths = json.loads((HERE.parent / "docs/openapi.json").read_text())["paths"]
    for container in pod["initContainers"] + pod["containers"]:
        for mount in container["volumeMounts"]:
            must(mount["name"] in volumes, f'{mount["name"]} is no volume')
        for probe in ("readinessProbe", "livenessProbe"):
            asked = container.get(probe, {}).get("exec", {}).get("command", [])
            for path in (word.removeprefix("http://localhost") for word in asked if "://" in word):
                must(path in paths, f"{path} is no path of the control API")
    for name in ("label-node.sh", "rekindle.toml"):
        said = [word for container in pod["containers"] for word in container["command"] if name in word]
        must(name in settings["data"] and said == [f"/etc/rekindle/settings/{name}"], f"{name} is not run")

    def env(place):
        (place / "token").write_text("secret")
        return {"NODE_NAME": "node-1", "ACCOUNT": str(place)}

    def lines_of(request):
        verb, path, fields, body = request
        must((verb, path) == ("PATCH", "/api/v1/nodes/node-1?fieldManager=rekindle&force=true"), f"{verb} {path}")
        must(fields["Authorization"] == "Bearer secret", "the account's token")
        must(fields["Content-Type"] == "application/apply-patch+yaml", "a patch that is applied")
        kubernetes_validate.validate(body, VERSIONS[-1], strict=True)
        return body["metadata"]["labels"], body["metadata"]["annotations"]

    asked = labelling(settings["data"]["label-node.sh"], env, lambda _: Server(("127.0.0.1", 0), socket.AF_INET), lines_of)
    rest = {"rekindle/running": "2", "rekindle/layers-gib": "3"}
    must(asked == [
        ({"rekindle/open": "true", "rekindle/snapshot-aa": "local"}, rest),
        ({"rekindle/open": "false", "rekindle/snapshot-bb": "warm"}, rest),
        ({}, {}),
    ], f"the node is labelled {asked}")


def plain(value):
    """A value of HCL, without the marks and quotes that its parser leaves."""
    if isinstance(value, dict):
        return {plain(name): plain(of) for name, of in value.items() if not name.startswith("__")}
    if isinstance(value, list):
        return [plain(of) for of in value]
    if not isinstance(value, str) or not value.startswith('"'):
        return value
    text = value[1:-1]
    if text.startswith("<<-EOT\n"):
        return textwrap.dedent("\n".join(text.split("\n")[1:-1])) + "\n"
    return json.loads(value)


def one(blocks, kind):
    """The one block of its kind, by its label."""
    must(len(blocks[kind]) == 1, f"one {kind} is expected")
    return next(iter(blocks[kind][0].items()))


def nomad():
    text = (HERE / "nomad/rekindle.nomad.hcl").read_text()
    _, job = one(plain(hcl2.loads(text)), "job")
    must(job["type"] == "system", "the job is on every client")
    _, group = one(job, "group")
    must(group["network"][0]["mode"] == "host", "the network of the host")
    tasks = {name: of for task in group["task"] for name, of in task.items()}
    must(list(tasks) == ["keeper", "rekindle", "labels"], f"the tasks are {list(tasks)}")
    hooks = {name: of["lifecycle"][0] for name, of in tasks.items() if "lifecycle" in of}
    must(hooks == {
        "keeper": {"hook": "prestart", "sidecar": True},
        "labels": {"hook": "poststart", "sidecar": True},
    }, f"the keeper goes before the daemon, and both go on beside it: {hooks}")
    made = {of["destination"]: of["data"] for task in tasks.values() for of in task.get("template", [])}
    must(not any("${" in data or "{{" in data for data in made.values()), "Nomad would replace parts of a file")
    for task in tasks.values():
        for word in task["config"][0]["args"]:
            must(not word.startswith("local/") or word in made, f"{word} is not made")
    paths = json.loads((HERE.parent / "docs/openapi.json").read_text())["paths"]
    for path in re.findall(r'"http://localhost(/v1/[^"]*)"', text):
        must(path in paths, f"{path} is no path of the control API")

    def lines_of(request):
        verb, path, fields, body = request
        must((verb, path) == ("POST", "/v1/client/metadata"), f"{verb} {path}")
        must(fields["Authorization"] == "Bearer secret", "the task's token")
        return body["Meta"]

    asked = labelling(
        made["local/label-node.sh"],
        lambda place: {"NOMAD_SECRETS_DIR": str(place), "NOMAD_TOKEN": "secret"},
        lambda place: Server(str(place / "api.sock"), socket.AF_UNIX),
        lines_of,
    )
    rest = {"rekindle-running": "2", "rekindle-layers-gib": "3"}
    must(asked == [
        {"rekindle-open": "true", "rekindle-snapshot-aa": "local", **rest},
        {"rekindle-open": "false", "rekindle-snapshot-bb": "warm", "rekindle-snapshot-aa": None, **rest},
        {"rekindle-open": None, "rekindle-snapshot-bb": None, "rekindle-running": None, "rekindle-layers-gib": None},
    ], f"the client is labelled {asked}")
    # Told to end, the daemon is drained before it is ended.
    with tempfile.TemporaryDirectory() as place:
        program = pathlib.Path(place, "rekindle")
        program.write_text(f"#!/bin/sh\necho $1 >>{place}/said\n[ $1 = drain ] || exec sleep {PATIENCE}\n")
        program.chmod(0o755)
        running = subprocess.Popen(["sh", "-c", made["local/serve.sh"].replace("/usr/bin/rekindle", str(program))], stderr=subprocess.DEVNULL)
        said = pathlib.Path(place, "said")
        while not said.exists():
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        running.wait(PATIENCE)
        must(said.read_text().split() == ["serve", "drain"], f"the daemon is told {said.read_text()}")


kubernetes()
nomad()
print("the manifests are right")
