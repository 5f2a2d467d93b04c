//! ZeroMQ (libzmq): threads that block, as it is used. One way by PUSH and PULL with the default high-water marks, which make
//! the sender wait; there and back, and calls, by DEALER and ROUTER on one socket of each half.

use zmq::{Context, Message, Socket, SocketType};

use crate::Outcome;
use crate::part::{self, Line, receiver, say};
use crate::work::{IN_FLIGHT, Kind, Payloads, Setup, Trips, Work, now};

pub fn part(setup: &Setup, first: bool) -> Outcome<()> {
    let context = Context::new();
    if first { answer(setup, &context) } else { ask(setup, &context) }
}

fn answer(setup: &Setup, context: &Context) -> Outcome<()> {
    let one_way = !matches!(setup.work, Work::Trip | Work::Calls);
    let socket = context.socket(if one_way { SocketType::PULL } else { SocketType::ROUTER })?;
    let address = match setup.system.as_str() {
        "zmq-ipc" => format!("ipc://{}", setup.folder.join("socket").display()),
        _ => "tcp://127.0.0.1:*".into(),
    };
    socket.bind(&address)?;
    say(&Line::Ready(socket.get_last_endpoint()?.map_err(|_| "no endpoint")?));
    let mut message = Message::new();
    if one_way {
        let mut take = receiver();
        loop {
            socket.recv(&mut message, 0)?;
            take(message[0]);
        }
    }
    let mut from = Message::new();
    loop {
        socket.recv(&mut from, 0)?;
        socket.recv(&mut message, 0)?;
        socket.send(std::mem::replace(&mut from, Message::new()), zmq::SNDMORE)?;
        socket.send(std::mem::replace(&mut message, Message::new()), 0)?;
    }
}

fn ask(setup: &Setup, context: &Context) -> Outcome<()> {
    let one_way = !matches!(setup.work, Work::Trip | Work::Calls);
    let socket = context.socket(if one_way { SocketType::PUSH } else { SocketType::DEALER })?;
    socket.connect(setup.addresses.first().ok_or("no address")?)?;
    let mut message = Message::new();
    match setup.work {
        Work::Trip => part::trips_blocking(setup, |payload| {
            socket.send(&payload[..], 0)?;
            Ok(socket.recv(&mut message, 0)?)
        })?,
        Work::Calls => calls(setup, &socket)?,
        _ => part::flood_blocking(setup, |payload| Ok(socket.send(&payload[..], 0)?))?,
    }
    loop {
        std::thread::park();
    }
}

/// One at a time, then one thread keeps `IN_FLIGHT` of them under way. Half of the time for each.
fn calls(setup: &Setup, socket: &Socket) -> Outcome<()> {
    let half = Setup { seconds: setup.seconds / 2.0, ..setup.clone() };
    let mut message = Message::new();
    let (p50, p99) = part::repeated_blocking(&half, |payload| {
        socket.send(&payload[..], 0)?;
        Ok(socket.recv(&mut message, 0)?)
    })?;
    say(&Line::Call { p50, p99 });
    let payload = Payloads::new(setup.work.size()).of(Kind::Data).clone();
    for _ in 0..IN_FLIGHT {
        socket.send(&payload[..], 0)?;
    }
    let (mut trips, mut done) = (Trips::new(&half), 0_u64);
    let (began, warm) = (now(), std::time::Duration::from_secs_f64(half.warm));
    loop {
        socket.recv(&mut message, 0)?;
        socket.send(&payload[..], 0)?;
        let at = now();
        done += u64::from(at - began > warm);
        if !trips.note(at) {
            break;
        }
    }
    say(&Line::Calls { per_second: done as f64 / half.seconds, made: done, failed: 0 });
    say(&Line::Done);
    Ok(())
}
