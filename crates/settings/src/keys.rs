//! Every setting by name, for files, variables and flags, with its text for help and documents.

mod edges;

use super::key::Key;
use edges::OF_EDGES;

/// All of them, in the order in which they are shown.
pub const KEYS: [Key; OF_NODE.len() + OF_EDGES.len()] = {
    let mut all = [OF_NODE[0]; OF_NODE.len() + OF_EDGES.len()];
    let mut position = 1;
    while position < all.len() {
        all[position] = match position.checked_sub(OF_NODE.len()) {
            Some(position) => OF_EDGES[position],
            None => OF_NODE[position],
        };
        position += 1;
    }
    all
};

/// Those of the node itself.
const OF_NODE: [Key; 30] = [
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
        name: "cache_bytes_max",
        flag: "cache-bytes-max",
        value: "SIZE|SHARE",
        help: "Disk that layer files may take: a size, or a share of the disk such as 30%; 0 for no limit. Published layers go, the least recently used first, and are fetched again when they are needed",
        default: "0",
        example: "\"200GiB\"",
        reloads: false,
    },
    Key {
        name: "disk_free_bytes_min",
        flag: "disk-free-bytes-min",
        value: "SIZE|SHARE",
        help: "Space that stays free on the disk of the layer files, which go for it as they do for cache_bytes_max",
        default: "5%",
        example: "\"20GiB\"",
        reloads: false,
    },
    Key {
        name: "layer_files_open_max",
        flag: "layer-files-open-max",
        value: "NUMBER|auto",
        help: "Layer files that stay open without being read; the others are opened when they are needed",
        default: "auto: half of the open files that the daemon may have",
        example: "\"auto\"",
        reloads: false,
    },
    Key {
        name: "unpublished_bytes_max",
        flag: "unpublished-bytes-max",
        value: "SIZE|SHARE",
        help: "Bytes of snapshots that may be on this node and not in the store; a pause beyond it is refused, with its guest running. A share is one of the disk; 0 for no limit",
        default: "0",
        example: "\"100GiB\"",
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
        name: "memory_mode",
        flag: "memory-mode",
        value: "auto|own|shared",
        help: "Whose pages a resumed guest runs on, unless the request says: own, shared, or auto, which is shared for several guests of one snapshot",
        default: "auto",
        example: "\"own\"",
        reloads: true,
    },
    Key {
        name: "working_set_share",
        flag: "working-set-share",
        value: "PERCENT",
        help: "Percent of a snapshot's bytes in the store that its working set may take beside it, packed for resumes elsewhere; 0 for none",
        default: "25",
        example: "10",
        reloads: false,
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
        name: "keep",
        flag: "keep",
        value: "RULES",
        help: "Which snapshots are kept, such as \"newest 3 within 7d\"; others are deleted for all nodes",
        default: "everything",
        example: "[\"newest 3 within 7d\", \"tier=gold newest 100\"]",
        reloads: true,
    },
    Key {
        name: "undelete_window",
        flag: "undelete-window",
        value: "TIME",
        help: "Time for which a deleted snapshot of the store can be brought back at least; 0 to delete for good at once",
        default: "0s",
        example: "\"7d\"",
        reloads: true,
    },
    Key {
        name: "collect_every",
        flag: "collect-every",
        value: "TIME",
        help: "Time between two collections of the store by this node; 0 for none",
        default: "1d",
        example: "\"1d\"",
        reloads: false,
    },
    Key {
        name: "collect_probation",
        flag: "collect-probation",
        value: "TIME",
        help: "Time from a collection to its deletions, at most 12h",
        default: "3600s",
        example: "\"1h\"",
        reloads: false,
    },
    Key {
        name: "node_abandoned_after",
        flag: "node-abandoned-after",
        value: "TIME",
        help: "Time without a sign of life after which a collection takes what another node relied on, at least 2d",
        default: "7d",
        example: "\"7d\"",
        reloads: false,
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
        name: "placement_file",
        flag: "placement-file",
        value: "PATH",
        help: "File that says what is on this node, for schedulers: kept true, and gone when the daemon ends",
        default: "none",
        example: "\"/run/rekindle/placement\"",
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
];

/// The setting of this name.
pub(super) fn named(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_and_flags_follow_from_names_and_never_collide() {
        let key = named("api.tcp.token_file").expect("it is listed");
        assert_eq!(key.variable(), "REKINDLE_API_TCP_TOKEN_FILE");
        assert_eq!(key.flag, "api-tcp-token-file");
        assert!(KEYS.iter().all(|key| key.flag == key.name.replace(['.', '_'], "-")));
        let flags: std::collections::BTreeSet<&str> = KEYS.iter().map(|key| key.flag).collect();
        assert_eq!(flags.len(), KEYS.len());
    }
}
