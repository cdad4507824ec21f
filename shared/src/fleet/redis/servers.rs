//! How to connect to what an address names.
//!
//! Each new connection begins at the address: a name is resolved, sentinels are asked who the master is, a cluster
//! is asked for its nodes. So whoever replaces a connection follows the servers wherever they went.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, Pipeline, RedisFuture, RedisResult,
    TlsCertificates, TlsMode, Value,
    aio::{ConnectionLike, MultiplexedConnection, PubSub},
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};

use super::address::Address;

/// A cluster sends a command on, once for a moved slot and once for one on its way, and one more time for luck.
const CLUSTER_RETRIES: u32 = 3;

/// A connection for commands, which any number of callers share by cloning it.
#[derive(Clone)]
pub(super) enum Connection {
    /// To one server.
    Server(MultiplexedConnection),
    /// To each node of a cluster.
    Cluster(ClusterConnection),
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Server(connection) => connection.req_packed_command(command),
            Self::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Server(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Server(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

/// What an address needs beside itself.
#[derive(Clone, Default)]
pub(super) struct Manners {
    /// Time for the handshakes of one connection.
    pub(super) connect_timeout: Duration,
    /// Time for one answer.
    pub(super) response_timeout: Duration,
    /// Own roots of trust, and who we are, for TLS.
    pub(super) certificates: Option<TlsCertificates>,
    /// User and password for the sentinels themselves.
    pub(super) sentinel_login: (Option<String>, Option<String>),
}

/// What an address leads to.
pub(super) struct Servers {
    address: Address,
    manners: Manners,
    way: Way,
}

enum Way {
    Server(Client),
    Sentinels,
    Cluster { cluster: Box<ClusterClient>, nodes: Vec<Client>, next: AtomicUsize },
}

impl Servers {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// The library's, of certificates that it can't read or a URL that it can't use.
    pub(super) fn new(address: Address, manners: Manners) -> RedisResult<Self> {
        let way = match &address {
            Address::Server(info) => Way::Server(client(info, &manners)?),
            Address::Sentinels { .. } => Way::Sentinels,
            Address::Cluster(nodes) => Way::Cluster {
                cluster: Box::new(cluster(nodes, &manners)?),
                nodes: nodes.iter().map(|node| client(node, &manners)).collect::<RedisResult<_>>()?,
                next: AtomicUsize::new(0),
            },
        };
        let servers = Self { address, manners, way };
        if let Way::Sentinels = servers.way {
            servers.sentinels()?;
        }
        Ok(servers)
    }

    /// How long connecting may take.
    pub(super) fn patience(&self) -> Duration {
        let Manners { connect_timeout, response_timeout, .. } = self.manners;
        let one = connect_timeout + 2 * response_timeout;
        match self.way {
            Way::Server(_) => one,
            // Of several one may be silent, and the next is asked only then.
            Way::Sentinels | Way::Cluster { .. } => one + connect_timeout,
        }
    }

    /// A new connection for commands.
    pub(super) async fn connect(&self) -> RedisResult<Connection> {
        match &self.way {
            Way::Server(client) => self.multiplexed(client).await,
            Way::Sentinels => self.multiplexed(&self.master().await?).await,
            // Boxed, as below: rarely used, and large.
            Way::Cluster { cluster, .. } => {
                Ok(Connection::Cluster(Box::pin(cluster.get_async_connection()).await?))
            }
        }
    }

    /// A new connection that listens. In a cluster any node hears what is published at any other.
    pub(super) async fn listen(&self) -> RedisResult<PubSub> {
        match &self.way {
            Way::Server(client) => Box::pin(client.get_async_pubsub()).await,
            Way::Sentinels => Box::pin(self.master().await?.get_async_pubsub()).await,
            Way::Cluster { nodes, next, .. } => {
                let turn = next.fetch_add(1, Ordering::Relaxed);
                Box::pin(nodes[turn % nodes.len()].get_async_pubsub()).await
            }
        }
    }

    /// The address as it may be shown.
    pub(super) fn shown(&self) -> String {
        self.address.to_string()
    }

    /// The sentinels' answer is as old as the question: it is asked for each connection.
    async fn master(&self) -> RedisResult<Client> {
        Box::pin(self.sentinels()?.async_get_client()).await
    }

    async fn multiplexed(&self, client: &Client) -> RedisResult<Connection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.manners.connect_timeout))
            .set_response_timeout(Some(self.manners.response_timeout));
        let connect = client.get_multiplexed_async_connection_with_config(&config);
        Ok(Connection::Server(Box::pin(connect).await?))
    }

    /// A new one each time: one that is kept also keeps its connections, to sentinels that may be gone.
    fn sentinels(&self) -> RedisResult<SentinelClient> {
        let Address::Sentinels { sentinels, master, server } = &self.address else {
            unreachable!("only an address of sentinels leads through them")
        };
        let addresses = sentinels.iter().map(|info| info.addr().clone());
        let mut builder = SentinelClientBuilder::new(addresses, master, SentinelServerType::Master)?
            .set_client_to_redis_db(server.redis_settings().db())
            .set_client_to_redis_tcp_settings(tcp_settings())
            .set_client_to_sentinel_tcp_settings(tcp_settings());
        if let Some(user) = server.redis_settings().username() {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = server.redis_settings().password() {
            builder = builder.set_client_to_redis_password(password);
        }
        if let Some(user) = &self.manners.sentinel_login.0 {
            builder = builder.set_client_to_sentinel_username(user);
        }
        if let Some(password) = &self.manners.sentinel_login.1 {
            builder = builder.set_client_to_sentinel_password(password);
        }
        if self.address.is_tls() {
            builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
        }
        if let Some(certificates) = &self.manners.certificates {
            builder = builder
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_certificates(certificates.clone());
        }
        builder.build()
    }
}

fn client(info: &ConnectionInfo, manners: &Manners) -> RedisResult<Client> {
    let info = info.clone().set_tcp_settings(tcp_settings());
    match (&manners.certificates, info.addr()) {
        (Some(certificates), ConnectionAddr::TcpTls { .. }) => {
            Client::build_with_tls(info, certificates.clone())
        }
        _ => Client::open(info),
    }
}

fn cluster(nodes: &[ConnectionInfo], manners: &Manners) -> RedisResult<ClusterClient> {
    let mut builder = ClusterClient::builder(nodes.to_vec())
        .retries(CLUSTER_RETRIES)
        .connection_timeout(manners.connect_timeout)
        .response_timeout(manners.response_timeout)
        .tcp_settings(tcp_settings());
    if let Some(certificates) = &manners.certificates {
        builder = builder.certs(certificates.clone());
    }
    builder.build()
}

/// A peer that vanished is noticed within seconds, and no answer waits for a bigger packet.
fn tcp_settings() -> TcpSettings {
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(5));
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(Duration::from_secs(5));
    settings
}
