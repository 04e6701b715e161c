//! Every setting by name, for files, variables and flags, with its text for help and documents.

/// A setting as it is named and told of.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    /// Its name in a settings file, with dots between tables: `api.tcp.listen`.
    pub name: &'static str,
    /// The flag that sets it, without the dashes before it: `api-tcp-listen`.
    pub flag: &'static str,
    /// Placeholder for its value in help.
    pub value: &'static str,
    /// Its meaning.
    pub help: &'static str,
    /// Its value where nothing is said, in words.
    pub default: &'static str,
    /// A value it could have, as a settings file has it.
    pub example: &'static str,
    /// True if it changes in a running daemon on SIGHUP.
    pub reloads: bool,
}

/// All of them, in the order in which they are shown.
pub const KEYS: [Key; 41] = [
    Key {
        name: "state_directory",
        flag: "state-directory",
        value: "PATH",
        help: "Directory of the catalog, layers and, unless set otherwise, the store",
        default: "/var/lib/rekindle for root, else $XDG_STATE_HOME/rekindle",
        example: "\"/var/lib/rekindle\"",
        reloads: false,
    },
    Key {
        name: "run_directory",
        flag: "run-directory",
        value: "PATH",
        help: "Directory of sockets; best one that a reboot empties",
        default: "/run/rekindle for root, else $XDG_RUNTIME_DIR/rekindle, else `run` in the state directory",
        example: "\"/run/rekindle\"",
        reloads: false,
    },
    Key {
        name: "store",
        flag: "store",
        value: "PATH|URL",
        help: "The store that snapshots are published to: a directory, or a URL: s3://BUCKET/PREFIX, gs://, az:// or file://",
        default: "`store` in the state directory",
        example: "\"/srv/rekindle/store\"",
        reloads: false,
    },
    Key {
        name: "domain",
        flag: "domain",
        value: "NAME",
        help: "Tenant name for deduplication: data is never shared between domains",
        default: "default",
        example: "\"default\"",
        reloads: false,
    },
    Key {
        name: "key_ring",
        flag: "key-ring",
        value: "PATH",
        help: "File with the secret keys of domains; nodes that share a store share it by a copy",
        default: "`key-ring.json` in the state directory",
        example: "\"/var/lib/rekindle/key-ring.json\"",
        reloads: false,
    },
    Key {
        name: "capture_bytes_max",
        flag: "capture-bytes-max",
        value: "SIZE",
        help: "RAM that captures may hold together; a pause that needs more waits with its guest running",
        default: "half of this machine's RAM",
        example: "\"64GiB\"",
        reloads: false,
    },
    Key {
        name: "run_unpausable",
        flag: "run-unpausable",
        value: "true|false",
        help: "Make sandboxes that could never be paused, their memory being more than capture_bytes_max",
        default: "false",
        example: "false",
        reloads: true,
    },
    Key {
        name: "memory_overcommit",
        flag: "memory-overcommit",
        value: "NUMBER",
        help: "Largest memory of all guests, as a multiple of the available RAM; guests take it as they touch it",
        default: "4",
        example: "4",
        reloads: true,
    },
    Key {
        name: "unsealed_ancestors_max",
        flag: "unsealed-ancestors-max",
        value: "NUMBER",
        help: "Unsealed ancestors a snapshot may have before the next pause has to wait (the guest keeps running)",
        default: "8",
        example: "8",
        reloads: false,
    },
    Key {
        name: "pause_wait",
        flag: "pause-wait",
        value: "TIME",
        help: "Longest time such a pause waits before it is refused",
        default: "30s",
        example: "\"30s\"",
        reloads: false,
    },
    Key {
        name: "compare_workers",
        flag: "compare-workers",
        value: "NUMBER|auto",
        help: "Threads that compare the pages of one snapshot, at idle priority",
        default: "auto: all seals together use half of the cores",
        example: "\"auto\"",
        reloads: false,
    },
    Key {
        name: "publish_bytes_a_second_max",
        flag: "publish-bytes-a-second-max",
        value: "SIZE",
        help: "Bytes that publishing may send in a second, over time; 0 for no limit",
        default: "0",
        example: "\"50MiB\"",
        reloads: false,
    },
    Key {
        name: "prefault",
        flag: "prefault",
        value: "none|working-set|all",
        help: "Pages that are brought ahead of a resumed guest, unless the request says: none, working-set or all",
        default: "working-set",
        example: "\"all\"",
        reloads: true,
    },
    Key {
        name: "serve_before_seal",
        flag: "serve-before-seal",
        value: "true|false",
        help: "Let a snapshot be resumed before it is sealed; off only to see what waiting costs",
        default: "true",
        example: "true",
        reloads: true,
    },
    Key {
        name: "set_aside_kept",
        flag: "set-aside-kept",
        value: "TIME",
        help: "Time to keep layer files that a start set aside, as its catalog did not name them",
        default: "30d",
        example: "\"30d\"",
        reloads: true,
    },
    Key {
        name: "events_kept",
        flag: "events-kept",
        value: "NUMBER",
        help: "Past events that a client can still ask for",
        default: "10000",
        example: "10000",
        reloads: false,
    },
    Key {
        name: "log_level",
        flag: "log-level",
        value: "LEVEL",
        help: "Level of the log: error, warn, info, debug or trace, also by module (info,rekindle_engine=debug)",
        default: "info",
        example: "\"info\"",
        reloads: true,
    },
    Key {
        name: "log_format",
        flag: "log-format",
        value: "human|json",
        help: "Form of the log: lines for people, or a JSON object a line",
        default: "human",
        example: "\"human\"",
        reloads: true,
    },
    Key {
        name: "bucket.endpoint",
        flag: "bucket-endpoint",
        value: "URL",
        help: "Address of the service that keeps the store's bucket, if it is not the one of AWS, Google or Azure",
        default: "the service's own",
        example: "\"https://s3.example.org\"",
        reloads: false,
    },
    Key {
        name: "bucket.region",
        flag: "bucket-region",
        value: "NAME",
        help: "Region of the bucket, for s3://",
        default: "AWS_REGION, else the profile's, else us-east-1",
        example: "\"eu-west-1\"",
        reloads: false,
    },
    Key {
        name: "bucket.path_style",
        flag: "bucket-path-style",
        value: "true|false",
        help: "Name the bucket in the path of requests instead of the name of the host, for s3://",
        default: "true with bucket.endpoint, else false",
        example: "true",
        reloads: false,
    },
    Key {
        name: "bucket.account",
        flag: "bucket-account",
        value: "NAME",
        help: "The storage account, for az://",
        default: "AZURE_STORAGE_ACCOUNT_NAME",
        example: "\"account\"",
        reloads: false,
    },
    Key {
        name: "bucket.profile",
        flag: "bucket-profile",
        value: "NAME",
        help: "The profile in the file of credentials, for s3://",
        default: "AWS_PROFILE, else `default`",
        example: "\"default\"",
        reloads: false,
    },
    Key {
        name: "bucket.credentials_file",
        flag: "bucket-credentials-file",
        value: "PATH",
        help: "A file with the credentials: profiles of AWS, a service account of Google, or names and values of Azure",
        default: "the service's variables, else its usual file, else the machine's metadata service",
        example: "\"/etc/rekindle/credentials\"",
        reloads: false,
    },
    Key {
        name: "bucket.authorities_file",
        flag: "bucket-authorities-file",
        value: "PATH",
        help: "Certificates of authorities to trust besides the system's, as PEM",
        default: "none",
        example: "\"/etc/rekindle/authorities.pem\"",
        reloads: false,
    },
    Key {
        name: "bucket.allow_http",
        flag: "bucket-allow-http",
        value: "true|false",
        help: "Allow an endpoint without TLS: whoever sees the line can then read the guests' memory",
        default: "false",
        example: "false",
        reloads: false,
    },
    Key {
        name: "api.socket",
        flag: "api-socket",
        value: "PATH",
        help: "The unix socket of the control API",
        default: "`api.sock` in the run directory",
        example: "\"/run/rekindle/api.sock\"",
        reloads: false,
    },
    Key {
        name: "api.allowed_uids",
        flag: "api-allowed-uids",
        value: "UID,...",
        help: "Users who may use the socket, besides root and the daemon's own",
        default: "none",
        example: "[1000]",
        reloads: false,
    },
    Key {
        name: "api.connections_max",
        flag: "api-connections-max",
        value: "NUMBER",
        help: "Connections to the socket, and as many over TCP; those beyond are answered with `too_many`",
        default: "1024",
        example: "4096",
        reloads: false,
    },
    Key {
        name: "api.tcp.listen",
        flag: "api-tcp-listen",
        value: "ADDRESS:PORT",
        help: "Serve the control API over TCP too, with TLS and a token; needs the three settings below it",
        default: "not served over TCP",
        example: "\"127.0.0.1:7433\"",
        reloads: false,
    },
    Key {
        name: "api.tcp.certificate",
        flag: "api-tcp-certificate",
        value: "PATH",
        help: "The certificate chain of the TCP listener, as PEM",
        default: "none",
        example: "\"/etc/rekindle/certificate.pem\"",
        reloads: false,
    },
    Key {
        name: "api.tcp.key",
        flag: "api-tcp-key",
        value: "PATH",
        help: "The private key of that certificate, as PEM",
        default: "none",
        example: "\"/etc/rekindle/key.pem\"",
        reloads: false,
    },
    Key {
        name: "api.tcp.token_file",
        flag: "api-tcp-token-file",
        value: "PATH",
        help: "A file that holds the token TCP clients have to show, readable by the daemon alone",
        default: "none",
        example: "\"/etc/rekindle/token\"",
        reloads: false,
    },
    Key {
        name: "firecracker.program",
        flag: "firecracker-program",
        value: "PATH",
        help: "The Firecracker that runs machines",
        default: "`firecracker` in PATH",
        example: "\"/usr/local/bin/firecracker\"",
        reloads: true,
    },
    Key {
        name: "firecracker.seccomp",
        flag: "firecracker-seccomp",
        value: "true|false",
        help: "Let Firecracker filter its system calls; unusual kernels need it off",
        default: "true",
        example: "true",
        reloads: true,
    },
    Key {
        name: "firecracker.jailer.program",
        flag: "firecracker-jailer-program",
        value: "PATH",
        help: "The jailer that starts Firecracker",
        default: "none",
        example: "\"/usr/local/bin/jailer\"",
        reloads: true,
    },
    Key {
        name: "firecracker.jailer.base",
        flag: "firecracker-jailer-base",
        value: "PATH",
        help: "The directory in which jails are made; best a tmpfs",
        default: "none",
        example: "\"/run/rekindle/jails\"",
        reloads: true,
    },
    Key {
        name: "firecracker.jailer.uid",
        flag: "firecracker-jailer-uid",
        value: "NUMBER",
        help: "The user that a jailed Firecracker becomes",
        default: "none",
        example: "10000",
        reloads: true,
    },
    Key {
        name: "firecracker.jailer.gid",
        flag: "firecracker-jailer-gid",
        value: "NUMBER",
        help: "Its group",
        default: "none",
        example: "10000",
        reloads: true,
    },
    Key {
        name: "telemetry.otlp_endpoint",
        flag: "telemetry-otlp-endpoint",
        value: "URL",
        help: "Address that spans are sent to, as OTLP over HTTP",
        default: "nowhere",
        example: "\"http://127.0.0.1:4318\"",
        reloads: false,
    },
    Key {
        name: "telemetry.service_name",
        flag: "telemetry-service-name",
        value: "NAME",
        help: "The name under which they are sent",
        default: "rekindle",
        example: "\"rekindle\"",
        reloads: false,
    },
];

impl Key {
    /// The key of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// The environment variable that sets it: `REKINDLE_API_TCP_LISTEN`.
    pub fn variable(&self) -> String {
        format!("REKINDLE_{}", self.name.replace('.', "_").to_uppercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_and_flags_follow_from_names_and_never_collide() {
        let key = Key::named("api.tcp.token_file").expect("it is listed");
        assert_eq!(key.variable(), "REKINDLE_API_TCP_TOKEN_FILE");
        assert_eq!(key.flag, "api-tcp-token-file");
        assert!(KEYS.iter().all(|key| key.flag == key.name.replace(['.', '_'], "-")));
        let flags: std::collections::BTreeSet<&str> = KEYS.iter().map(|key| key.flag).collect();
        assert_eq!(flags.len(), KEYS.len());
    }
}
