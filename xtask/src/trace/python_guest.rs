//! A guest that runs Python on Linux: an initrd with the host's Python, its libraries and a program.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use rekindle_guest::machine::initrd_of;

/// Debian's Python.
const PYTHON: &str = "/usr/bin/python3";

/// Imports of the guest's program.
const IMPORTS: &str = "import json, random, re, sys";

/// The guest's program: it keeps documents, and each step rewrites some, searches all and writes a report.
const PROGRAM: &str = r#"
numbers = random.Random(7)
words = ["".join(numbers.choice("etaoinshrdlucm") for _ in range(numbers.randrange(3, 11))) for _ in range(3000)]
def document(number):
    text = " ".join(numbers.choices(words, k=80))
    return {"number": number, "text": text, "values": [numbers.random() for _ in range(40)]}
documents = {number: document(number) for number in range(6000)}
reports = []
print("python ready", flush=True)
for count, line in enumerate(sys.stdin, 1):
    for number in numbers.sample(range(6000), 400):
        documents[number] = document(number)
    wanted = re.compile(numbers.choice(words))
    found = [number for number, kept in documents.items() if wanted.search(kept["text"])]
    best = sorted(documents.values(), key=lambda kept: sum(kept["values"]))[:300]
    reports.append(json.dumps({"found": found, "best": best}))
    print("stepped", count, flush=True)
"#;

/// Its initrd.
pub(crate) fn initrd() -> anyhow::Result<Vec<u8>> {
    let list = format!(
        "{IMPORTS}\nimport encodings.utf_8, encodings.ascii, encodings.latin_1, os\n\
         print(os.path.realpath(sys.executable))\n\
         for module in list(sys.modules.values()):\n    \
             if getattr(module, '__file__', None): print(module.__file__)"
    );
    let listed = output(Command::new(PYTHON).args(["-I", "-S", "-c", &list]))?;
    let mut paths: BTreeSet<PathBuf> = listed.lines().map(PathBuf::from).collect();
    let python = PathBuf::from(listed.lines().next().context("Python says where it is")?);
    let linked: Vec<PathBuf> =
        paths.iter().filter(|path| **path == python || is_library(path)).cloned().collect();
    for program in linked {
        let words = output(Command::new("ldd").arg(&program))?;
        paths.extend(words.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from));
    }
    let mut files = Vec::new();
    for path in paths {
        let name = path.strip_prefix("/").context("it is an absolute path")?.display().to_string();
        files.push((name, std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?));
    }
    files.push(("init".to_owned(), format!("#!{} -IS\n{IMPORTS}\n{PROGRAM}", python.display()).into_bytes()));
    Ok(initrd_of(&files))
}

fn is_library(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "so")
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
