//! Files between two peers of this machine, over TCP: one of 1 GiB, against messages of 1 MiB, and 10,000 of 1 KiB, against
//! `rsync -a` between two directories. `cargo bench --bench files [DIRECTORY]`

#![expect(clippy::print_stdout, reason = "a measurement prints what it measured")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use meshd::config::{ShareConfig, ShareMode};
use meshd::{
    FarPlace, FileEvent, FileJob, FilePlace, JobKind, ListenOptions, NetworkKey, Node, Overflow, SendOptions, SharePath,
};
use tokio::time::Instant;

type Anything = Result<(), Box<dyn std::error::Error>>;

#[tokio::main]
async fn main() -> Anything {
    let base = std::env::args().nth(1).filter(|argument| !argument.starts_with("--"));
    let folder = tempfile::tempdir_in(base.unwrap_or_else(|| std::env::temp_dir().to_string_lossy().into_owned()))?;
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    std::fs::create_dir_all(here.join("many"))?;
    std::fs::create_dir_all(&there)?;
    let (key, runtime) = (NetworkKey::generate(), folder.path().join("run"));
    let builder = |name: &str| Node::builder(name).key(key.clone()).listen(["127.0.0.1:0"]).mdns(false).kad(false);
    // Without a directory to meet in, peers of one machine speak as if they were on two.
    let local = std::env::var_os("LOCAL").is_some();
    let server = builder("server").runtime_dir(&runtime).local(local).start().await?;
    let mut address = Vec::new();
    while address.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
        address = server.status().await?.addresses;
    }
    let client = builder("client").runtime_dir(&runtime).local(local).bootstrap(address).start().await?;
    let share = ShareConfig { name: "data".into(), path: there.clone(), mode: ShareMode::Both };
    let _sharing = server.share(vec![share]).await?;
    client.service("meshd.files")?.wait_for_providers(1, Duration::from_secs(10)).await;

    let block: Vec<u8> = (0..1_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let messages = messages(&client, &server, &block).await?;
    line("1 MiB messages", 1 << 30, messages);

    let film = here.join("film");
    let mut content = Vec::with_capacity(1 << 30);
    (0..1024_u32).for_each(|at| content.extend(block.iter().map(|byte| byte ^ at as u8)));
    std::fs::write(&film, &content)?;
    drop(content);
    for round in 0..3 {
        let to = |name: &str| FilePlace::Here(here.join(name).to_string_lossy().into_owned().into_bytes());
        let _ = std::fs::remove_file(there.join("film"));
        let put = run(&client, to("film"), far("film")?, JobKind::Copy).await?;
        let got = run(&client, far("film")?, to("got"), JobKind::Copy).await?;
        line(
            &format!("put 1 GiB, {:.0} % of messages", 100.0 * messages.as_secs_f64() / put.as_secs_f64()),
            1 << 30,
            put,
        );
        line(
            &format!("get 1 GiB, {:.0} % of messages", 100.0 * messages.as_secs_f64() / got.as_secs_f64()),
            1 << 30,
            got,
        );
        std::fs::remove_file(here.join("got"))?;
        if round == 0 {
            memory();
        }
    }

    for number in 0..10_000 {
        std::fs::write(here.join(format!("many/{number}")), &block[number..number + 1024])?;
    }
    for _ in 0..3 {
        let began = Instant::now();
        let rsync = Command::new("rsync").arg("-a").arg(here.join("many")).arg(folder.path().join("copy")).status();
        if rsync.is_ok_and(|status| status.success()) {
            line("rsync -a of 10,000", 10_240_000, began.elapsed());
        }
        let many = FilePlace::Here(here.join("many").to_string_lossy().into_owned().into_bytes());
        let put = run(&client, many, far("many")?, JobKind::Sync { delete: false, dry_run: false }).await?;
        line("put 10,000", 10_240_000, put);
        let back = FilePlace::Here(folder.path().join("back").to_string_lossy().into_owned().into_bytes());
        let got = run(&client, far("many")?, back, JobKind::Sync { delete: false, dry_run: false }).await?;
        line("get 10,000", 10_240_000, got);
        for gone in ["copy", "back", "there/many"] {
            let _ = std::fs::remove_dir_all(folder.path().join(gone));
        }
    }
    memory();
    client.shutdown().await;
    server.shutdown().await;
    Ok(())
}

async fn messages(client: &Node, server: &Node, block: &[u8]) -> Result<Duration, Box<dyn std::error::Error>> {
    let options = ListenOptions { overflow: Overflow::Block, ..ListenOptions::default() };
    let mut messages = server.listen_with("flood", options).await?;
    let publisher = client.publisher("flood")?;
    publisher.wait_for_listeners(1, Duration::from_secs(10)).await;
    let block = bytes::Bytes::copy_from_slice(block);
    let began = Instant::now();
    let sending = tokio::spawn(async move {
        let options = SendOptions { timeout: Some(Duration::from_secs(60)), ..SendOptions::default() };
        for _ in 0..1024 {
            publisher.publish(meshd::Codec::Bytes, block.clone(), &options).await?;
        }
        Ok::<_, meshd::SendError>(())
    });
    for _ in 0..1024 {
        messages.next().await.ok_or("the mesh ends")?;
    }
    sending.await??;
    Ok(began.elapsed())
}

async fn run(
    client: &Node,
    from: FilePlace,
    to: FilePlace,
    kind: JobKind,
) -> Result<Duration, Box<dyn std::error::Error>> {
    let began = Instant::now();
    let mut transfer = client.transfer(FileJob { from: vec![from], to: vec![to], kind, regex: None })?;
    while let Some(event) = transfer.next().await {
        if let FileEvent::Failed { message, .. } = event? {
            return Err(message.into());
        }
    }
    Ok(began.elapsed())
}

fn far(path: &str) -> Result<FilePlace, meshd::BadPath> {
    let path = SharePath::new(path)?;
    Ok(FilePlace::There(FarPlace { node: "server".into(), share: "data".into(), path, within: false }))
}

fn line(what: &str, bytes: u64, took: Duration) {
    let rate = bytes as f64 / took.as_secs_f64() / 1e6;
    println!("{what:40} {:8.3} s {rate:8.0} MB/s", took.as_secs_f64());
}

fn memory() {
    let status = std::fs::read_to_string(Path::new("/proc/self/status")).unwrap_or_default();
    status
        .lines()
        .filter(|line| line.starts_with("VmHWM") || line.starts_with("VmRSS"))
        .for_each(|line| println!("{line}"));
}
