//! A way from one node to another, on which a test can hold bytes up or lose them.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Fate of the bytes on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// They go on.
    Open,
    /// Requests wait.
    Held,
    /// Answers are lost.
    Mute,
}

#[derive(Debug)]
struct State {
    way: Way,
    /// True once a request waits.
    waits: bool,
    connections: Vec<TcpStream>,
}

/// The way to one node.
#[derive(Clone, Debug)]
pub(crate) struct Proxy {
    address: String,
    state: Arc<(Mutex<State>, Condvar)>,
}

impl Proxy {
    /// A way to the node at that address.
    pub(crate) fn to(node: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a port");
        let address = listener.local_addr().expect("it listens").to_string();
        let state = State { way: Way::Open, waits: false, connections: Vec::new() };
        let (proxy, node) =
            (Self { address, state: Arc::new((Mutex::new(state), Condvar::new())) }, node.to_owned());
        let this = proxy.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&node) else { continue };
                this.connect(&client, &server);
            }
        });
        proxy
    }

    /// The address at which it listens.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Requests wait from now on.
    pub(crate) fn hold(&self) {
        self.set(Way::Held);
    }

    /// Answers are lost from now on.
    pub(crate) fn mute(&self) {
        self.set(Way::Mute);
    }

    /// Bytes go on, also those that wait.
    pub(crate) fn open(&self) {
        self.set(Way::Open);
    }

    /// The same, and all connections so far end.
    pub(crate) fn cut(&self) {
        for connection in self.lock().connections.drain(..) {
            connection.shutdown(Shutdown::Both).ok();
        }
        self.open();
    }

    /// Waits until a request waits.
    pub(crate) fn wait_until_held(&self) {
        let state = self.state.1.wait_while(self.lock(), |state| !state.waits);
        drop(state.unwrap_or_else(PoisonError::into_inner));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, way: Way) {
        let mut state = self.lock();
        (state.way, state.waits) = (way, false);
        drop(state);
        self.state.1.notify_all();
    }

    fn connect(&self, client: &TcpStream, server: &TcpStream) {
        let again = |stream: &TcpStream| stream.try_clone().expect("there are descriptors");
        self.lock().connections.extend([again(client), again(server)]);
        let (requests, answers) = (self.clone(), self.clone());
        let (from, to) = (again(client), again(server));
        thread::spawn(move || copy(from, to, || requests.request_goes_on()));
        let (from, to) = (again(server), again(client));
        thread::spawn(move || copy(from, to, || answers.lock().way != Way::Mute));
    }

    fn request_goes_on(&self) -> bool {
        let mut state = self.lock();
        while state.way == Way::Held {
            state.waits = true;
            self.state.1.notify_all();
            state = self.state.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        true
    }
}

/// Copies until an end closes; bytes that do not go on are lost.
fn copy(mut from: TcpStream, mut to: TcpStream, goes_on: impl Fn() -> bool) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if goes_on() && to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    to.shutdown(Shutdown::Both).ok();
    from.shutdown(Shutdown::Both).ok();
}
