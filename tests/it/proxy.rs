//! What stands between two peers: forwards bytes, holds them up, cuts.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// A port that leads to another.
pub(crate) struct Proxy {
    address: SocketAddr,
    flows: watch::Sender<bool>,
    connections: Arc<Mutex<JoinSet<()>>>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Leads to a peer that listens there, as a multiaddress.
    pub(crate) async fn to(address: &str) -> Self {
        let port: u16 = address.split('/').nth(4).unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (flows, _) = watch::channel(true);
        let connections: Arc<Mutex<JoinSet<()>>> = Arc::default();
        let (gate, kept) = (flows.clone(), Arc::clone(&connections));
        let accepting = tokio::spawn(async move {
            while let Ok((here, _)) = listener.accept().await {
                let Ok(there) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                let _ = (here.set_nodelay(true), there.set_nodelay(true)); // else each turn takes 40 ms
                let (gate_out, gate_in) = (gate.subscribe(), gate.subscribe());
                let ((read, write), (read_back, write_back)) = (here.into_split(), there.into_split());
                let forwarding = async move {
                    tokio::select! {
                        () = forward(read, write_back, gate_out) => {}
                        () = forward(read_back, write, gate_in) => {}
                    }
                };
                kept.lock().unwrap().spawn(forwarding);
            }
        });
        Self { address, flows, connections, accepting }
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// How many connections it has carried.
    pub(crate) fn connections(&self) -> usize {
        self.connections.lock().unwrap().len() // those that have ended are kept
    }

    /// Whether bytes flow. Those that are held up stay where they are.
    pub(crate) fn set_flows(&self, flows: bool) {
        self.flows.send_replace(flows);
    }

    /// Closes all connections; what is held up is lost.
    pub(crate) fn cut(&self) {
        self.connections.lock().unwrap().abort_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut flows: watch::Receiver<bool>) {
    let mut bytes = vec![0; 4 << 10];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        if flows.wait_for(|flows| *flows).await.is_err() || to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
