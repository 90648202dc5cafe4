//! A tonic service that does nothing but answer every GetToken with the same message: what the service is
//! measured by.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};

use token_broker_client::proto;
use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// Serves on a listener until the task ends.
pub async fn serve(listener: TcpListener, response: proto::GetTokenResponse) {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder().add_service(Bare(response)).serve_with_incoming(incoming);
    server.await.expect("it serves");
}

/// The service.
#[derive(Clone)]
pub struct Bare(pub proto::GetTokenResponse);

impl NamedService for Bare {
    const NAME: &'static str = token_broker::grpc::SERVICE_NAME;
}

impl UnaryService<proto::GetTokenRequest> for Bare {
    type Response = proto::GetTokenResponse;
    type Future = Ready<Result<Response<Self::Response>, Status>>;

    fn call(&mut self, _: Request<proto::GetTokenRequest>) -> Self::Future {
        ready(Ok(Response::new(self.0.clone())))
    }
}

impl Service<http::Request<Body>> for Bare {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let bare = self.clone();
        Box::pin(async move {
            Ok(Grpc::new(tonic_prost::ProstCodec::default()).unary(bare, request).await)
        })
    }
}
