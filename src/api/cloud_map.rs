//! The service tells Cloud Map where it answers, where nothing else does it: ECS registers its tasks by itself.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use aws_config::SdkConfig;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::aws::json::{CLOUD_MAP, JsonClient};

/// Settings `[api.cloud_map]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Id of the Cloud Map service, `srv-…`.
    pub service_id: String,
    /// Id of this instance within the service; empty: made of address and port.
    pub instance_id: String,
    /// The address under which others reach this process; empty: that of the interface that leads outside.
    pub address: String,
    /// Deadline of one attempt of a call.
    pub timeout: SignedDuration,
}

/// The pause before registering is tried again.
const AGAIN: Duration = Duration::from_secs(15);

/// An instance of a Cloud Map service.
#[derive(Clone, Debug)]
pub struct Instance {
    client: JsonClient,
    service: String,
    id: String,
    address: IpAddr,
    port: u16,
}

/// Why the service cannot be registered.
#[derive(Debug, thiserror::Error)]
pub enum CloudMapError {
    /// The address of the settings is none.
    #[error("api.cloud_map.address `{0}` is not an IP address")]
    Address(String),
    /// No interface leads outside.
    #[error("find the address under which others reach this process: {0}; set api.cloud_map.address")]
    Nowhere(std::io::Error),
}

impl Instance {
    /// What listens at `listening`, as the settings name it.
    ///
    /// # Errors
    /// There is no address under which others could reach it.
    pub fn new(aws: &SdkConfig, settings: &Settings, listening: SocketAddr) -> Result<Instance, CloudMapError> {
        let address = match (settings.address.as_str(), listening.ip()) {
            ("", own) if !own.is_unspecified() => own,
            ("", _) => outward().map_err(CloudMapError::Nowhere)?,
            (text, _) => text.parse().map_err(|_| CloudMapError::Address(text.to_owned()))?,
        };
        let port = listening.port();
        let id = match settings.instance_id.as_str() {
            "" => format!("{address}-{port}").replace([':', '.'], "-"),
            id => id.to_owned(),
        };
        let client = JsonClient::new(aws, CLOUD_MAP, settings.timeout);
        Ok(Instance { client, service: settings.service_id.clone(), id, address, port })
    }

    /// Registers it, and tries until that is done.
    pub async fn register(&self) {
        let family = if self.address.is_ipv4() { "AWS_INSTANCE_IPV4" } else { "AWS_INSTANCE_IPV6" };
        let input = json!({
            "ServiceId": self.service,
            "InstanceId": self.id,
            "CreatorRequestId": format!("{}-{}", self.id, Timestamp::now().as_millisecond()),
            "Attributes": {family: self.address.to_string(), "AWS_INSTANCE_PORT": self.port.to_string()},
        });
        loop {
            match self.client.call::<Value>("RegisterInstance", &input).await {
                Ok(_) => return tracing::info!(instance = self.id, "registered in Cloud Map"),
                Err(fault) => tracing::warn!(cause = fault.cause, "not registered in Cloud Map; trying again"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Takes it out again.
    pub async fn deregister(&self) {
        let input = json!({"ServiceId": self.service, "InstanceId": self.id});
        match self.client.call::<Value>("DeregisterInstance", &input).await {
            Ok(_) => tracing::info!(instance = self.id, "no longer registered in Cloud Map"),
            Err(fault) => tracing::warn!(cause = fault.cause, "Cloud Map still names this instance"),
        }
    }
}

/// The address of the interface that leads outside. Nothing is sent: connecting a datagram socket only asks the routes.
fn outward() -> std::io::Result<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect("198.51.100.1:9")?;
    Ok(socket.local_addr()?.ip())
}
