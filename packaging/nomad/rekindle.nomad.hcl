# rekindle on each client of a Nomad cluster that has the Debian package and the meta key "rekindle-host". docs/operations.md, "On
# Nomad", says what to put on the clients before, and which right the labels need.
job "rekindle" {
  type = "system"

  constraint {
    attribute = "${meta.rekindle-host}"
    value     = "true"
  }

  update {
    max_parallel = 1
  }

  group "node" {
    network {
      mode = "host"
      port "peers" {
        static = 7420
      }
    }

    # Guests are its children: it starts before the daemon and ends after it.
    task "keeper" {
      driver      = "raw_exec"
      kill_signal = "SIGTERM"
      lifecycle {
        hook    = "prestart"
        sidecar = true
      }
      config {
        command = "/usr/bin/rekindle"
        args    = ["keeper", "--socket", "/run/rekindle/keeper.sock"]
      }
    }

    task "rekindle" {
      driver       = "raw_exec"
      leader       = true
      kill_timeout = "11m"
      config {
        command = "/bin/sh"
        args    = ["local/serve.sh"]
      }
      template {
        destination = "local/serve.sh"
        data        = <<-EOT
          # Told to end, it pauses all sandboxes into the store, from where the next daemon has them.
          /usr/bin/rekindle serve --config local/rekindle.toml &
          daemon=$!
          trap '/usr/bin/rekindle drain --timeout 10m; kill "$daemon"' TERM INT
          wait "$daemon"
          wait "$daemon"
        EOT
      }
      template {
        destination = "local/rekindle.toml"
        data        = <<-EOT
          store = "s3://snapshots/fleet"
          key_ring = "/etc/rekindle/fleet/key-ring.json"
          placement_file = "/run/rekindle/placement"
          log_format = "json"

          [peers]
          listen = "0.0.0.0:7420"
          certificate = "/etc/rekindle/fleet/node.pem"
          key = "/etc/rekindle/fleet/node-key.pem"
          authority = "/etc/rekindle/fleet/fleet.pem"
          dns = ["rekindle-peers.service.consul:7420"]
        EOT
      }
      env {
        REKINDLE_PEERS_ADDRESS = "${NOMAD_ADDR_peers}"
      }
      # The nodes, as peers.dns finds them: also those that are drained, which may have what others need.
      service {
        name = "rekindle-peers"
        port = "peers"
        check {
          type     = "tcp"
          interval = "10s"
          timeout  = "2s"
        }
      }
      # The nodes that do requests.
      service {
        name = "rekindle"
        check {
          name     = "ready"
          type     = "script"
          command  = "/usr/bin/curl"
          args     = ["-fsS", "--unix-socket", "/run/rekindle/api.sock", "http://localhost/v1/ready"]
          interval = "5s"
          timeout  = "2s"
        }
      }
    }

    task "labels" {
      driver = "raw_exec"
      lifecycle {
        hook    = "poststart"
        sidecar = true
      }
      # The right to change the client's metadata is given to this job.
      identity {
        env = true
      }
      env {
        PLACEMENT_FILE = "/run/rekindle/placement"
      }
      config {
        command = "/bin/sh"
        args    = ["local/label-node.sh"]
      }
      template {
        destination = "local/label-node.sh"
        data        = <<-EOT
          # Gives the client what the lines of rekindle's file say, as dynamic metadata; what is not said any more is unset. At the
          # end nothing is said.
          apply() {
              new=$(printf '%s\n' "$lines" | sed -n 's|^rekindle/\([^=]*\)=\(.*\)$|"rekindle-\1":"\2"|p')
              gone=$(printf '%s\n' "$keys" | while read -r key; do
                  [ -z "$key" ] || case $new in *"$key:"*) ;; *) echo "$key:null" ;; esac
              done)
              meta=$(printf '%s\n' "$new" "$gone" | sed '/^$/d' | paste -sd, -)
              curl -sS --fail-with-body --max-time 10 --output /dev/null --unix-socket "$NOMAD_SECRETS_DIR/api.sock" \
                  --header "Authorization: Bearer $NOMAD_TOKEN" --data-binary "{\"Meta\":{$meta}}" \
                  http://localhost/v1/client/metadata && said=$lines && keys=$(printf '%s\n' "$new" | sed 's/:.*//')
          }
          trap 'lines=; apply; exit 0' TERM INT
          said=none keys=
          while true; do
              lines=$(cat "$PLACEMENT_FILE" 2>/dev/null)
              [ "$lines" = "$said" ] || apply
              sleep 5 & wait $!
          done
        EOT
      }
    }
  }
}
