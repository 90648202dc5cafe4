//! The service: one method per RPC, which parses, calls the broker and renders.

use std::future::Future;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};

use futures::future::BoxFuture;
use futures::{Stream, StreamExt, stream};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use http::HeaderMap;
use token_broker_client::proto;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};
use tracing::Instrument;

use super::admission::Handover;
use super::call::{Call, Method};
use super::caller::{BotCaller, Callers};
use super::convert;
use super::error::CallError;
use super::generated::token_broker_service_server::TokenBrokerService;
use super::status::reason_of;
use crate::broker::caller::with_caller;
use crate::broker::{Broker, BrokerError};
use crate::domain::bot::Bot;
use crate::domain::name::Name;
use crate::listener::RunningCall;

#[derive(Debug)]
pub(super) struct Service {
    broker: Arc<Broker>,
    callers: Callers,
}

impl Service {
    pub(super) fn new(broker: Arc<Broker>) -> Self {
        let places = broker.settings.limits.max_concurrent_calls.get() as usize;
        let callers = Callers::new(broker.bots.values(), places);
        let counts = Arc::clone(callers.counts());
        broker.metrics.watch_calls(move |observe| counts.visit(observe));
        Self { callers, broker }
    }

    /// Decides by its headers whether a call is read at all.
    pub(super) fn admit(
        &self,
        method: Method,
        headers: &HeaderMap,
        authenticated: impl FnOnce(&Name),
    ) -> Result<(Admitted, OwnedSemaphorePermit), Status> {
        let mut call = Call::begin(method, headers, &self.broker.metrics);
        let mut bot = None;
        let admitted = self.callers.authenticate(headers).and_then(|caller| {
            bot = Some(caller);
            authenticated(&caller.bot.name);
            caller.check(method)?;
            if self.broker.tasks.draining().is_cancelled() {
                return Err(CallError::Broker(BrokerError::Overloaded));
            }
            Ok((caller, place_of(&caller.reading)?))
        });
        match admitted {
            Ok((caller, reading)) => Ok((Admitted { call, caller: Arc::clone(caller) }, reading)),
            Err(error) => {
                let reason = reason_of(&error);
                match bot {
                    Some(caller) => caller.count(method, Some(reason)),
                    None => self.callers.count_stranger(method, reason),
                }
                call.distrust();
                let span = call.span(bot.map(|caller| &*caller.bot));
                let status = span.in_scope(|| refused(error));
                call.ends(status.code(), &span);
                Err(status)
            }
        }
    }

    /// The admitted call that a message belongs to.
    fn admitted<T>(request: &Request<T>) -> Result<(Admitted, Option<RunningCall>), Status> {
        let handover = request.extensions().get::<Handover>();
        handover.and_then(Handover::take).ok_or_else(|| refused(BrokerError::Internal.into()))
    }

    async fn call<Req, Res, F>(
        &self,
        request: Request<Req>,
        run: impl FnOnce(Arc<Broker>, Arc<Bot>, Req) -> F,
    ) -> Result<Response<Res>, Status>
    where
        Res: Send + 'static,
        F: Future<Output = Result<Res, CallError>> + Send + 'static,
    {
        let (admitted, _running) = Self::admitted(&request)?;
        let ended = self.run(admitted, |broker, bot| run(broker, bot, request.into_inner())).await;
        ended.map(|(_, response)| Response::new(response))
    }

    /// One span, and one log line for an error. The use case runs in a task of its own, which keeps the
    /// call's place until it has ended: a caller that goes away cancels nothing half-way. The call goes
    /// on for as long as the caller of this holds it.
    async fn run<Res, F>(
        &self,
        admitted: Admitted,
        run: impl FnOnce(Arc<Broker>, Arc<Bot>) -> F,
    ) -> Result<(Call, Res), Status>
    where
        Res: Send + 'static,
        F: Future<Output = Result<Res, CallError>> + Send + 'static,
    {
        let Admitted { mut call, caller } = admitted;
        let span = call.span(Some(&caller.bot));
        async {
            let span = tracing::Span::current();
            let places = if call.method.is_stream { &caller.streams } else { &caller.calls };
            let result = match place_of(places) {
                Ok(place) => {
                    call.hold(place);
                    let place = call.place();
                    // Boxed, so that the call's own future stays small.
                    let run: BoxFuture<'static, _> =
                        Box::pin(run(Arc::clone(&self.broker), Arc::clone(&caller.bot)));
                    let gone = CancellationToken::new();
                    let (is_gone, work) = (gone.clone(), Arc::clone(&caller.work));
                    let run = async move {
                        let share = tokio::select! {
                            share = work.acquire_owned() => share.ok(),
                            () = is_gone.cancelled() => None,
                        };
                        let share = share.ok_or(CallError::Broker(BrokerError::Overloaded))?;
                        let ended = with_caller(is_gone, share, run).await;
                        drop(place);
                        ended
                    };
                    let _waits = gone.drop_guard();
                    let ended = self.broker.tasks.detached(run).await;
                    ended.unwrap_or_else(|crash| Err(CallError::Broker(crash)))
                }
                Err(error) => Err(error),
            };
            caller.count(call.method, result.as_ref().err().map(reason_of));
            let result = result.map_err(refused);
            call.ends(result.as_ref().map_or_else(Status::code, |_| Code::Ok), &span);
            result.map(|result| (call, result))
        }
        .instrument(span)
        .await
    }
}

/// A call that may be made, and whose message is read next.
#[derive(Debug)]
pub(super) struct Admitted {
    call: Call,
    caller: Arc<BotCaller>,
}

impl Admitted {
    pub(super) fn caller(&self) -> Arc<BotCaller> {
        Arc::clone(&self.caller)
    }
}

fn place_of(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, CallError> {
    let place = Arc::clone(places).try_acquire_owned();
    place.map_err(|_| CallError::Broker(BrokerError::Overloaded))
}

/// The most log lines of refusals that callers can cause without end. The metrics count all.
static FLOOD: LazyLock<DefaultDirectRateLimiter> = LazyLock::new(|| {
    let burst = NonZeroU32::new(100).expect("not zero");
    let quota = Quota::per_second(NonZeroU32::new(10).expect("not zero")).allow_burst(burst);
    RateLimiter::direct(quota)
});

pub(super) fn refused(error: CallError) -> Status {
    if let CallError::Broker(error) = &error {
        error.log_storage();
    }
    // Not the caller's message, which may name a subject.
    if error.is_known_outage() || error.may_flood() && FLOOD.check().is_err() {
        tracing::debug!(reason = reason_of(&error), error = %error, "call refused");
    } else {
        tracing::info!(reason = reason_of(&error), error = %error, "call refused");
    }
    Status::from(error)
}

type WatchStream =
    Pin<Box<dyn Stream<Item = Result<proto::WatchAuthorizationResponse, Status>> + Send>>;

#[tonic::async_trait]
impl TokenBrokerService for Service {
    async fn authorize(
        &self,
        request: Request<proto::AuthorizeRequest>,
    ) -> Result<Response<proto::AuthorizeResponse>, Status> {
        self.call(request, |broker, bot, message| async move {
            let request = convert::authorize_request(&bot.namespace, message)?;
            let started = broker.authorizations.authorize(&bot, request).await?;
            Ok(convert::authorize_response(&started))
        })
        .await
    }

    async fn get_authorization(
        &self,
        request: Request<proto::GetAuthorizationRequest>,
    ) -> Result<Response<proto::GetAuthorizationResponse>, Status> {
        self.call(request, |broker, bot, message| async move {
            let id = convert::authorization_id(&message.authorization_id)?;
            let view = broker.authorizations.get_authorization(&bot, id).await?;
            let authorization = Some(convert::authorization(view));
            Ok(proto::GetAuthorizationResponse { authorization })
        })
        .await
    }

    type WatchAuthorizationStream = WatchStream;

    async fn watch_authorization(
        &self,
        request: Request<proto::WatchAuthorizationRequest>,
    ) -> Result<Response<WatchStream>, Status> {
        let (admitted, _running) = Self::admitted(&request)?;
        let message = request.into_inner();
        let watching = self.run(admitted, |broker, bot| async move {
            let id = convert::authorization_id(&message.authorization_id)?;
            Ok(broker.authorizations.watch_authorization(&bot, id).await?)
        });
        let (mut call, views) = watching.await?;
        call.streams();
        // The call lasts as long as its stream.
        let messages = stream::unfold((views.boxed(), call), |(mut views, mut call)| async {
            let message = match views.next().await {
                Some(Ok(view)) => {
                    let authorization = Some(convert::authorization(view));
                    Ok(proto::WatchAuthorizationResponse { authorization })
                }
                Some(Err(error)) => {
                    let status = refused(CallError::Broker(error));
                    call.stream_ends(status.code());
                    return Some((Err(status), (stream::empty().boxed(), call)));
                }
                None => {
                    call.stream_seen();
                    return None;
                }
            };
            Some((message, (views, call)))
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn confirm_authorization(
        &self,
        request: Request<proto::ConfirmAuthorizationRequest>,
    ) -> Result<Response<proto::ConfirmAuthorizationResponse>, Status> {
        self.call(request, |broker, bot, message| async move {
            let request = convert::confirm_request(message)?;
            let grant = broker.authorizations.confirm(&bot, request).await?;
            Ok(proto::ConfirmAuthorizationResponse { grant: Some(convert::grant(&grant)) })
        })
        .await
    }

    async fn cancel_authorization(
        &self,
        request: Request<proto::CancelAuthorizationRequest>,
    ) -> Result<Response<proto::CancelAuthorizationResponse>, Status> {
        self.call(request, |broker, bot, message| async move {
            let id = convert::authorization_id(&message.authorization_id)?;
            let view = broker.authorizations.cancel(&bot, id).await?;
            let authorization = Some(convert::authorization(view));
            Ok(proto::CancelAuthorizationResponse { authorization })
        })
        .await
    }

    async fn get_token(
        &self,
        request: Request<proto::GetTokenRequest>,
    ) -> Result<Response<proto::GetTokenResponse>, Status> {
        let (admitted, _running) = Self::admitted(&request)?;
        let bot = &admitted.caller.bot;
        let request = convert::get_token_request(&bot.namespace, request.into_inner());
        // A cached token costs no span, unless its caller records the trace, and takes no place of a call.
        if !admitted.call.is_recorded()
            && let Ok(request) = &request
            && let Some(hit) = self.broker.tokens.get_cached_token(bot, request)
        {
            admitted.caller.count(admitted.call.method, None);
            admitted.call.answered();
            return Ok(Response::new(convert::cached_response(&hit)));
        }
        // Otherwise the cache has been searched already.
        let recorded = admitted.call.is_recorded();
        let ended = self.run(admitted, |broker, bot| async move {
            let request = request?;
            if recorded && let Some(hit) = broker.tokens.get_cached_token(&bot, &request) {
                return Ok(convert::cached_response(&hit));
            }
            Ok(convert::get_token_response(broker.tokens.get_token(&bot, request).await?))
        });
        // Boxed: its state is large, and would be allocated for cached tokens too.
        Box::pin(ended).await.map(|(_, response)| Response::new(response))
    }

    async fn refresh(
        &self,
        request: Request<proto::RefreshRequest>,
    ) -> Result<Response<proto::RefreshResponse>, Status> {
        self.call(request, |broker, bot, message| async move {
            let request = convert::refresh_request(&bot.namespace, message)?;
            let issued = broker.tokens.refresh(&bot, request).await?;
            Ok(proto::RefreshResponse { token: Some(convert::token(issued)) })
        })
        .await
    }

    async fn revoke(
        &self,
        request: Request<proto::RevokeRequest>,
    ) -> Result<Response<proto::RevokeResponse>, Status> {
        self.call(request, |broker, bot, message| async move {
            let key = convert::grant_key(&bot.namespace, message.key)?;
            let state = broker.revocations.revoke(&bot, &key).await?;
            Ok(proto::RevokeResponse { revocation: convert::revocation(state).into() })
        })
        .await
    }

    async fn revoke_all(
        &self,
        request: Request<proto::RevokeAllRequest>,
    ) -> Result<Response<proto::RevokeAllResponse>, Status> {
        self.call(request, |broker, bot, message| async move {
            let mut violations = convert::Violations::default();
            let subject = violations.subject("subject", &message.subject);
            let provider = match message.provider.as_str() {
                "" => None,
                text => violations.provider("provider", text),
            };
            let subject = violations.finish(subject)?;
            let revoked = broker.revocations.revoke_all(&bot, &subject, provider.as_ref()).await?;
            let grants = revoked.iter().map(|(key, state)| proto::RevokedGrant {
                key: Some(convert::key_message(key)),
                revocation: convert::revocation(*state).into(),
            });
            Ok(proto::RevokeAllResponse { grants: grants.collect() })
        })
        .await
    }

    async fn list_grants(
        &self,
        request: Request<proto::ListGrantsRequest>,
    ) -> Result<Response<proto::ListGrantsResponse>, Status> {
        self.call(request, |broker, bot, message| async move {
            let (request, tokens) = convert::grants_page(message)?;
            let (grants, next) = broker.lists.list_grants(&bot, request).await?;
            Ok(proto::ListGrantsResponse {
                grants: grants.iter().map(convert::grant).collect(),
                next_page_token: next
                    .map(|next| tokens.write(&[&next.subject, &next.provider, &next.account]))
                    .unwrap_or_default(),
            })
        })
        .await
    }

    async fn list_providers(
        &self,
        request: Request<proto::ListProvidersRequest>,
    ) -> Result<Response<proto::ListProvidersResponse>, Status> {
        self.call(request, |broker, bot, message| async move {
            let (size, after, tokens) = convert::providers_page(&message)?;
            let mut rest = broker.lists.list_providers(&bot, after.as_ref());
            let providers: Vec<_> = rest.by_ref().take(size).map(convert::provider).collect();
            let next_page_token = match (rest.next(), providers.last()) {
                (Some(_), Some(last)) => tokens.write(&[&last.name]),
                _ => String::new(),
            };
            Ok(proto::ListProvidersResponse { providers, next_page_token })
        })
        .await
    }
}

/// The RPCs of the service, as configuration names them.
#[cfg(test)]
mod tests {
    use prost::Message;

    #[test]
    fn configuration_knows_every_method() {
        let contract =
            prost_types::FileDescriptorSet::decode(super::super::CONTRACT).expect("the contract");
        let service = contract
            .file
            .iter()
            .flat_map(|file| &file.service)
            .find(|service| service.name() == "TokenBrokerService")
            .expect("the service");
        let methods: Vec<_> = service.method.iter().map(|method| method.name()).collect();
        let mut known = crate::config::METHODS.to_vec();
        known.sort_unstable();
        let mut methods_sorted = methods.clone();
        methods_sorted.sort_unstable();
        assert_eq!(methods_sorted, known);
    }
}
