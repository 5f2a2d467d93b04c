//! A stream of readings, which either end stops: the reader when it has enough, the sensor when it ends or fails.
//!
//! ```sh
//! cargo run --example readings
//! ```
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt};
use meshd::{Failure, NetworkKey, Node};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let key = NetworkKey::generate();
    let peer = |name: &str| Node::builder(name).key(key.clone()).listen(["127.0.0.1:0"]).mdns(false);

    let station = peer("station").start().await?;
    let _readings = station.serve_stream("readings", |sensor: String| measure(Sensor(sensor))).await?;

    let reader = peer("reader").start().await?;
    reader.service("readings")?.wait_for_providers(1, Duration::from_secs(10)).await;
    for (sensor, enough) in [("attic", 3), ("cellar", 100), ("roof", 100)] {
        println!("the reader wants {enough} readings of the {sensor}");
        let mut readings = reader.call_stream::<_, f64>("readings", sensor).await?.take(enough);
        while let Some(reading) = readings.next().await {
            match reading {
                Ok(celsius) => println!("  {celsius:.1} degrees"),
                Err(error) => println!("  {error}"), // the last that comes
            }
        }
        println!("the reader is done with the {sensor}");
    } // whoever drops the stream stops the sensor
    reader.shutdown().await;
    station.shutdown().await;
    Ok(())
}

/// The attic's goes on for ever, the cellar's has four readings, the roof's breaks after two.
fn measure(sensor: Sensor) -> impl Stream<Item = Result<f64, Failure>> {
    stream::unfold((sensor, 0), |(sensor, number)| async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let reading = match (sensor.0.as_str(), number) {
            ("cellar", 4) => return None,
            ("roof", 2) => Err(Failure::new("broken", "the wind took the sensor")),
            _ => Ok(20.0 + f64::from(number) / 2.0),
        };
        Some((reading, (sensor, number + 1)))
    })
}

struct Sensor(String);

impl Drop for Sensor {
    fn drop(&mut self) {
        println!("    (at the station, the sensor of the {} rests)", self.0);
    }
}
