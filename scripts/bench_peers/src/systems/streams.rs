//! No messaging system: frames of a length and a payload on one stream, as fast as the transport takes them. A libp2p
//! connection as meshd has one (TCP, Noise, yamux), a Unix socket, TCP.

use std::future::poll_fn;

use bytes::Bytes;
use futures::StreamExt;
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerExt};
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, PortUse, TransportEvent};
use libp2p::core::upgrade::Version;
use libp2p::core::{Endpoint, Transport};
use libp2p::identity::Keypair;
use libp2p::{PeerId, noise, tcp, yamux};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::compat::FuturesAsyncReadCompatExt;

use crate::Outcome;
use crate::part::{self, Exchange, Line, rest, say};
use crate::work::{Setup, Tally, Work};

/// A stream without its type.
trait Both: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Both for T {}
type Stream = Box<dyn Both>;

pub async fn first(setup: Setup) -> Outcome<()> {
    let stream = accept(&setup).await?;
    let mut stream = BufReader::with_capacity(64 << 10, stream);
    let mut message = vec![0; setup.work.size()];
    if setup.work == Work::Trip {
        loop {
            let Ok(size) = stream.read_u32().await else { return rest().await };
            let size = size as usize;
            stream.read_exact(&mut message[..size]).await?;
            stream.write_all(&[&(size as u32).to_be_bytes(), &message[..]].concat()).await?;
            stream.flush().await?;
        }
    }
    let mut tally = Tally::default();
    loop {
        let size = stream.read_u32().await? as usize;
        stream.read_exact(&mut message[..size]).await?;
        if let Some(counted) = tally.take(message[0]) {
            say(&Line::Counted(counted));
            break;
        }
    }
    say(&Line::Done);
    rest().await
}

pub async fn second(setup: Setup) -> Outcome<()> {
    let stream = connect(&setup).await?;
    if setup.work == Work::Trip {
        return part::trips(&setup, Trip { stream, answer: vec![0; setup.work.size() + 4] }).await;
    }
    part::flood(&setup, Flood { stream: BufWriter::with_capacity(16 << 10, stream), sent: 0 }).await
}

struct Flood {
    stream: BufWriter<Stream>,
    sent: u64,
}

impl Exchange for Flood {
    async fn once(&mut self, payload: Bytes) -> Outcome<()> {
        self.stream.write_u32(payload.len() as u32).await?;
        self.stream.write_all(&payload).await?;
        self.sent += 1;
        if self.sent.is_multiple_of(32) || payload.len() > 1 << 10 || payload[0] != 0 {
            self.stream.flush().await?;
        }
        Ok(())
    }
}

struct Trip {
    stream: Stream,
    answer: Vec<u8>,
}

impl Exchange for Trip {
    async fn once(&mut self, payload: Bytes) -> Outcome<()> {
        self.stream.write_all(&[&(payload.len() as u32).to_be_bytes(), &payload[..]].concat()).await?;
        self.stream.flush().await?;
        self.stream.read_exact(&mut self.answer).await?;
        Ok(())
    }
}

async fn accept(setup: &Setup) -> Outcome<Stream> {
    match setup.system.as_str() {
        "unix" => {
            let path = setup.folder.join("socket");
            let listener = UnixListener::bind(&path)?;
            say(&Line::Ready(path.to_string_lossy().into_owned()));
            Ok(Box::new(listener.accept().await?.0))
        }
        "tcp" => {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            say(&Line::Ready(listener.local_addr()?.to_string()));
            let stream = listener.accept().await?.0;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        }
        _ => {
            let mut transport = transport();
            transport.listen_on(ListenerId::next(), "/ip4/127.0.0.1/tcp/0".parse()?)?;
            let mut connection = loop {
                match transport.next().await.ok_or("no listener")? {
                    TransportEvent::NewAddress { listen_addr, .. } => say(&Line::Ready(listen_addr.to_string())),
                    TransportEvent::Incoming { upgrade, .. } => break upgrade.await?.1,
                    _ => {}
                }
            };
            let stream = poll_fn(|context| {
                let _ = connection.poll_unpin(context)?;
                connection.poll_inbound_unpin(context)
            })
            .await?;
            tokio::spawn(async move {
                let _ = poll_fn(|context| connection.poll_unpin(context)).await;
            });
            Ok(Box::new(stream.compat()))
        }
    }
}

async fn connect(setup: &Setup) -> Outcome<Stream> {
    let address = setup.addresses.first().ok_or("no address")?;
    match setup.system.as_str() {
        "unix" => Ok(Box::new(UnixStream::connect(address).await?)),
        "tcp" => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        }
        _ => {
            let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
            let (_, mut connection) = transport().dial(address.parse()?, options)?.await?;
            let stream = poll_fn(|context| {
                let _ = connection.poll_unpin(context)?;
                connection.poll_outbound_unpin(context)
            })
            .await?;
            tokio::spawn(async move {
                let _ = poll_fn(|context| connection.poll_unpin(context)).await;
            });
            Ok(Box::new(stream.compat()))
        }
    }
}

fn transport() -> Boxed<(PeerId, StreamMuxerBox)> {
    let key = Keypair::generate_ed25519();
    tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(&key).expect("a fresh key signs"))
        .multiplex(yamux::Config::default())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed()
}
