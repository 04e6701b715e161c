//! `rekindle serve`: runs the daemon, from its start to its end.

mod signals;
mod supervisor;

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use rekindle_api::control::Control;
use rekindle_api::limits;
use rekindle_api::{ListenError, ListenOptions, Listeners, Secrets, TcpOptions};
use rekindle_engine::catalog::CatalogError;
use rekindle_engine::private::{self, make_directory};
use rekindle_engine::store_gate::OtherStore;
use rekindle_kernel::placement;
use rekindle_settings::{SettingFlags, Settings};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::session::Session;
use super::status::Status;
use crate::daemon::Served;
use crate::daemon::{Daemon, StartOptions};
use crate::privacy;
use crate::telemetry::{Telemetry, TelemetryOptions};
use signals::{Signals, Wish};
use supervisor::Supervisor;

/// With which settings.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
SIGTERM and SIGINT (Ctrl-C) end the daemon: requests are finished, guests run on without it and wait, at most, for the \
next one. Killing it in any other way loses nothing either. SIGHUP reads settings again; those marked in `rekindle \
settings` change at once.")]
pub struct ServeArguments {
    /// Accept the store that `store` names now as this node's, although another one has its snapshots: they cannot be
    /// read until its objects are copied
    #[arg(long)]
    accept_store: bool,
    #[command(flatten)]
    flags: SettingFlags,
}

/// Longest time for a daemon that was told to end, or killed, to let go of its socket and its catalog.
const LAST_DAEMON_LIMIT: Duration = Duration::from_secs(10);
/// Time between two checks if it has.
const LAST_DAEMON_ASK: Duration = Duration::from_millis(10);

/// When memory runs out the kernel ends the daemon after guests and after what says nothing of itself, where it may ask
/// for that; the keeper, without which it could not go on, it ends later still.
const OOM_SCORE: i16 = -900;

/// Open files with which a daemon serves a few sandboxes.
const OPEN_FILES_MIN: u64 = 256;

/// Longest time at the end for requests whose clients are gone.
const LEFT_OVER_LIMIT: Duration = Duration::from_secs(10);

/// Runs the daemon until it is told to end.
pub fn run(session: &Session, arguments: &ServeArguments) -> anyhow::Result<Status> {
    crate::panics::end_at_a_panic();
    let other_store = if arguments.accept_store { OtherStore::Accepted } else { OtherStore::Refused };
    run_with(session, arguments, |settings| {
        let options = StartOptions { other_store, ..StartOptions::new()? };
        Ok(Daemon::start_with(settings, options)?)
    })
}

/// Runs what `start` starts until it is told to end.
pub fn run_with(
    session: &Session,
    arguments: &ServeArguments,
    start: impl Fn(&Settings) -> anyhow::Result<Arc<dyn Served>>,
) -> anyhow::Result<Status> {
    let flags = session.setting_flags(arguments.flags.clone());
    let settings = Settings::load(&flags)?;
    settings.check_sockets()?;
    private::keep_to_this_user();
    open_as_many_files_as_allowed()?;
    let telemetry = Telemetry::start(&telemetry_options(&settings))?;
    for name in &settings.ignored_variables {
        tracing::warn!("the variable {name} sets nothing");
    }
    // One that may not is as likely to be ended as its user's other processes, and later than guests.
    placement::outlive_others(OOM_SCORE).ok();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(limits::THREADS_MAX)
        .thread_name("api")
        .build()
        .context("starting the runtime of the control API")?;
    // From here on a signal is a wish, not an end.
    let mut signals = runtime.block_on(async { Signals::take() }).context("listening for signals")?;
    privacy::close_places(&settings).context(
        "preparing the directories of the daemon; run as a user who may write there, or set state_directory and \
         run_directory to other places",
    )?;
    let listeners = {
        let _inside = runtime.enter();
        after_the_last(|| listen(&settings))?
    };
    let daemon = after_the_last(|| start(&settings))?;
    let supervisor = Supervisor::of_process();
    say_where(&listeners);
    supervisor.ready();
    let secrets = listeners.secrets();
    let mut serving =
        Serving { flags, settings, secrets, telemetry, daemon: Arc::clone(&daemon), supervisor };
    let control: Arc<dyn Control> = daemon.clone();
    let served = runtime.block_on(rekindle_api::serve(control, listeners, serving.until_end(&mut signals)));
    daemon.end();
    runtime.shutdown_timeout(LEFT_OVER_LIMIT);
    served.context("serving the control API")?;
    tracing::info!("ended; guests that run go on and are found again at the next start");
    Ok(Status::Done)
}

/// Raises this process's limit of open files to the most that it may: each sandbox and each open layer takes some.
fn open_as_many_files_as_allowed() -> anyhow::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    anyhow::ensure!(
        maximum.is_none_or(|maximum| maximum >= OPEN_FILES_MIN),
        "this process may open {} files, and the daemon needs {OPEN_FILES_MIN} or more: raise the hard limit \
         (LimitNOFILE in the unit, `ulimit -Hn` in a shell)",
        maximum.unwrap_or_default()
    );
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .context("raising the limit of open files")
}

/// Tries again while another daemon has what this one needs, for a bounded time: one that was just killed is still
/// ending, and lets go of its socket and its catalog last.
fn after_the_last<T>(attempt: impl Fn() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let begun = Instant::now();
    let mut is_said = false;
    loop {
        match attempt() {
            Err(error) if is_taken(&error) && begun.elapsed() < LAST_DAEMON_LIMIT => {
                if !std::mem::replace(&mut is_said, true) {
                    tracing::warn!(
                        "waiting up to {LAST_DAEMON_LIMIT:?} for another daemon to end: {error:#}"
                    );
                }
                std::thread::park_timeout(LAST_DAEMON_ASK);
            }
            done => return done,
        }
    }
}

fn is_taken(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ListenError::Taken { .. }))
        || matches!(error.downcast_ref(), Some(CatalogError::Held { .. }))
}

/// A daemon that is being served.
struct Serving {
    flags: SettingFlags,
    settings: Settings,
    secrets: Option<Secrets>,
    telemetry: Telemetry,
    daemon: Arc<dyn Served>,
    supervisor: Supervisor,
}

impl Serving {
    /// Does what signals wish, and tells the supervisor that the daemon works, until the wish is to end.
    async fn until_end(&mut self, signals: &mut Signals) {
        loop {
            let wish = tokio::select! {
                wish = signals.next() => wish,
                () = self.supervisor.due() => {
                    self.report_alive().await;
                    continue;
                }
            };
            match wish {
                Wish::Reload => self.reload().await,
                Wish::End(signal) => {
                    tracing::info!("{signal}: ending");
                    self.supervisor.stopping();
                    signals.end_at_once_on_the_next();
                    return;
                }
            }
        }
    }

    /// A daemon that answers, through the same threads as requests do, is alive.
    async fn report_alive(&self) {
        let daemon = Arc::clone(&self.daemon);
        if tokio::task::spawn_blocking(move || daemon.version()).await.is_ok() {
            self.supervisor.alive();
        }
    }

    async fn reload(&mut self) {
        self.supervisor.reloading();
        let flags = self.flags.clone();
        match tokio::task::spawn_blocking(move || Settings::load(&flags)).await {
            Ok(Ok(newer)) => self.take_over(&newer),
            Ok(Err(error)) => tracing::error!("settings were not changed: {error}"),
            Err(error) => tracing::error!("settings were not changed: {error}"),
        }
        self.supervisor.ready();
    }

    fn take_over(&mut self, newer: &Settings) {
        for change in self.settings.changes(newer) {
            let (key, before, after) = (change.key.name, change.before, change.after);
            if change.key.reloads {
                tracing::info!("{key} is now {after}; it was {before}");
            } else {
                tracing::warn!(
                    "{key} is {after} in the settings and stays {before} until the daemon is restarted"
                );
            }
        }
        if let Err(error) = self.telemetry.change_logging(&newer.log_level, newer.log_format) {
            tracing::error!("logging was not changed: {error}");
        }
        match self.secrets.as_ref().map(Secrets::read_again) {
            Some(Ok(())) => tracing::info!("the certificate, its key and the token were read again"),
            Some(Err(error)) => {
                tracing::error!("the certificate, its key and the token stay as they were: {error}")
            }
            None => {}
        }
        self.settings = self.settings.reloaded(newer);
        self.daemon.reload(&self.settings);
    }
}

fn listen(settings: &Settings) -> anyhow::Result<Listeners> {
    let api = &settings.api;
    if let Some(directory) = api.socket.parent() {
        make_directory(directory).context(
            "run as a user who may write there, or set run_directory or api.socket to another place",
        )?;
        if !api.allowed_uids.is_empty() {
            let_through(directory)?;
        }
    }
    let options = ListenOptions {
        socket: api.socket.clone(),
        allowed_uids: api.allowed_uids.clone(),
        connections_max: api.connections_max,
        tcp: tcp_options(settings),
    };
    Ok(Listeners::bind(&options)?)
}

/// Opens the socket's directory to users who may use the socket; those above it are not ours to open.
fn let_through(directory: &Path) -> anyhow::Result<()> {
    let directory = directory.canonicalize().with_context(|| format!("finding {}", directory.display()))?;
    let mode_of = |path: &Path| Ok::<_, io::Error>(path.metadata()?.permissions().mode() & 0o7777);
    let opened = mode_of(&directory).and_then(|mode| match mode & 0o001 {
        0 => fs::set_permissions(&directory, Permissions::from_mode(mode | 0o011)),
        _ => Ok(()),
    });
    opened.with_context(|| {
        format!(
            "opening {} to the users of api.allowed_uids; chmod a+x it, or set api.socket to another place",
            directory.display()
        )
    })?;
    let shut = directory.ancestors().skip(1).find(|path| mode_of(path).is_ok_and(|mode| mode & 0o001 == 0));
    if let Some(shut) = shut {
        let shut = shut.display();
        tracing::warn!(
            "users of api.allowed_uids may not get through {shut}: chmod a+x it, or set run_directory"
        );
    }
    Ok(())
}

fn say_where(listeners: &Listeners) {
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!("rekindle {version} listens on {}", listeners.socket().display());
    if let Some(address) = listeners.tcp_address() {
        tracing::info!("and on https://{address}");
    }
}

/// Options of listening on TCP, if set.
pub fn tcp_options(settings: &Settings) -> Option<TcpOptions> {
    settings.api.tcp.clone().map(|tcp| TcpOptions {
        listen: tcp.listen,
        certificate: Some(tcp.certificate),
        key: Some(tcp.key),
        token_file: Some(tcp.token_file),
    })
}

fn telemetry_options(settings: &Settings) -> TelemetryOptions {
    TelemetryOptions {
        log_level: settings.log_level.clone(),
        log_format: settings.log_format,
        otlp_endpoint: settings.telemetry.otlp_endpoint.clone(),
        service_name: settings.telemetry.service_name.clone(),
    }
}
