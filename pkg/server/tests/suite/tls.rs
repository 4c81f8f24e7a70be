//! TLS and mutual TLS.

use crate::common::{authority::Authority, *};
use gorego_tls::{ClientAuth, ServerTls};
use reapi::v2::{GetCapabilitiesRequest, capabilities_client::CapabilitiesClient};
use tokio::sync::watch;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

/// A server with a certificate of this authority.
async fn server(authority: &Authority, client_auth: ClientAuth) -> Server {
    serving(watch::channel(authority.server(client_auth)).1).await
}

async fn serving(tls: watch::Receiver<ServerTls>) -> Server {
    Server::limited(|options| options.transport.tls = Some(tls)).await
}

/// Connects with these TLS settings and makes a call.
async fn ask(
    authority: &Authority,
    server: &Server,
    identity: Option<(String, String)>,
) -> Result<(), String> {
    let channel = connect(authority, server, identity).await?;
    capabilities(channel).await
}

async fn capabilities(channel: Channel) -> Result<(), String> {
    CapabilitiesClient::new(channel)
        .get_capabilities(GetCapabilitiesRequest::default())
        .await
        .map(|_| ())
        .map_err(|error| format!("{error:?}"))
}

async fn connect(
    authority: &Authority,
    server: &Server,
    identity: Option<(String, String)>,
) -> Result<Channel, String> {
    let mut tls = ClientTlsConfig::new()
        .domain_name("localhost")
        .ca_certificate(Certificate::from_pem(authority.pem()));
    if let Some((certificate, key)) = identity {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    let endpoint = Channel::from_shared(format!("https://{}", server.address)).unwrap();
    let connecting = endpoint.tls_config(tls).unwrap().connect().await;
    connecting.map_err(|error| format!("{error:?}"))
}

#[tokio::test]
async fn without_client_authentication_every_client_may_connect() {
    let authority = Authority::new();
    let server = server(&authority, ClientAuth::None).await;
    ask(&authority, &server, None).await.unwrap();
    let stranger = Authority::new().issue("client");
    ask(&authority, &server, Some(stranger)).await.unwrap();
}

#[tokio::test]
async fn with_verify_if_given_an_invalid_client_certificate_is_refused() {
    let authority = Authority::new();
    let ca_file = authority.ca_file();
    let server = server(&authority, ClientAuth::VerifyIfGiven { ca_file }).await;
    ask(&authority, &server, None).await.unwrap();
    let known = authority.issue("client");
    ask(&authority, &server, Some(known)).await.unwrap();
    let stranger = Authority::new().issue("client");
    ask(&authority, &server, Some(stranger)).await.unwrap_err();
}

#[tokio::test]
async fn with_require_and_verify_a_trusted_client_certificate_is_required() {
    let authority = Authority::new();
    let ca_file = authority.ca_file();
    let server = server(&authority, ClientAuth::RequireAndVerify { ca_file }).await;
    let known = authority.issue("client");
    ask(&authority, &server, Some(known)).await.unwrap();
    ask(&authority, &server, None).await.unwrap_err();
    let stranger = Authority::new().issue("client");
    ask(&authority, &server, Some(stranger)).await.unwrap_err();
}

#[tokio::test]
async fn blobs_pass_through_tls_unchanged() {
    let authority = Authority::new();
    let server = server(&authority, ClientAuth::None).await;
    let content = noise(3_000_000, 1);
    let digest = sha256(&content);
    let channel = connect(&authority, &server, None).await.unwrap();
    let mut client = reapi::bytestream::byte_stream_client::ByteStreamClient::new(channel);
    let name = upload_name("u", &digest);
    write(&mut client, messages(&name, &content, 100_000))
        .await
        .unwrap();
    let found = read(&mut client, &format!("blobs/{digest}"), 0, 0).await;
    assert_eq!(found.unwrap(), content);
}

#[tokio::test]
async fn a_client_without_tls_is_refused() {
    let authority = Authority::new();
    let server = server(&authority, ClientAuth::None).await;
    let channel = Channel::from_shared(format!("http://{}", server.address)).unwrap();
    let answer = match channel.connect().await {
        Ok(channel) => CapabilitiesClient::new(channel)
            .get_capabilities(GetCapabilitiesRequest::default())
            .await
            .map(|_| ())
            .map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    answer.unwrap_err();
}

#[tokio::test]
async fn a_new_certificate_is_used_for_new_connections_alone() {
    let (old, new) = (Authority::new(), Authority::new());
    let (change, tls) = watch::channel(old.server(ClientAuth::None));
    let server = serving(tls).await;
    let before = connect(&old, &server, None).await.unwrap();
    ask(&new, &server, None).await.unwrap_err();
    change.send_replace(new.server(ClientAuth::None));
    ask(&new, &server, None).await.unwrap();
    ask(&old, &server, None).await.unwrap_err();
    capabilities(before).await.unwrap();
}

#[tokio::test]
async fn a_client_is_verified_by_the_authorities_at_its_handshake() {
    let (authority, old, new) = (Authority::new(), Authority::new(), Authority::new());
    let clients = |known: &Authority| ClientAuth::RequireAndVerify {
        ca_file: known.ca_file(),
    };
    let (change, tls) = watch::channel(authority.server(clients(&old)));
    let server = serving(tls).await;
    let me = new.issue("client");
    ask(&authority, &server, Some(me.clone()))
        .await
        .unwrap_err();
    change.send_replace(authority.server(clients(&new)));
    ask(&authority, &server, Some(me)).await.unwrap();
}
