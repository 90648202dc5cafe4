//! Pages (AIP-158): sizes, and tokens that name where the next page begins.

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use sha2::{Digest, Sha256};
use token_broker_client::proto;

use super::Violations;
use crate::broker::list::ListGrantsRequest;
use crate::domain::grant::Subject;
use crate::domain::name::Name;
use crate::grpc::error::CallError;
use crate::storage::ListPosition;

const DEFAULT_PAGE: u32 = 100;
const LARGEST_PAGE: u32 = 1000;

const NOT_A_PAGE_TOKEN: &str =
    "is not a token of this list: send the last page's next_page_token with the same filters";

/// The size of a page: 0 is the default, and more than the largest is the largest.
pub(in crate::grpc) fn page_size(violations: &mut Violations, size: i32) -> u32 {
    match u32::try_from(size) {
        Ok(0) => DEFAULT_PAGE,
        Ok(size) => size.min(LARGEST_PAGE),
        Err(_) => {
            violations.add("page_size", "must not be negative");
            DEFAULT_PAGE
        }
    }
}

/// A list of grants, and what makes the token of its next page.
pub(in crate::grpc) fn grants_page(
    request: proto::ListGrantsRequest,
) -> Result<(ListGrantsRequest, PageTokens), CallError> {
    let mut violations = Violations::default();
    let optional = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let provider: Option<Name> =
        optional(&request.provider).and_then(|text| violations.provider("provider", &text));
    let subject: Option<Subject> =
        optional(&request.subject).and_then(|text| violations.subject("subject", &text));
    let page_size = page_size(&mut violations, request.page_size);
    let tokens = PageTokens::new(&["grants", &request.provider, &request.subject]);
    let after = tokens.read(&mut violations, &request.page_token);
    let after =
        after.map(|[subject, provider, account]| ListPosition { subject, provider, account });
    let list = ListGrantsRequest { provider, subject, page_size, after };
    Ok((violations.finish(Some(list))?, tokens))
}

/// A list of providers: the size of the page, after which name, and the next page's token.
pub(in crate::grpc) fn providers_page(
    request: &proto::ListProvidersRequest,
) -> Result<(usize, Option<Name>, PageTokens), CallError> {
    let mut violations = Violations::default();
    let page_size = page_size(&mut violations, request.page_size);
    let tokens = PageTokens::new(&["providers"]);
    let after = tokens
        .read(&mut violations, &request.page_token)
        .and_then(|[name]| Name::parse(&name).ok());
    violations.finish(Some((page_size as usize, after, tokens)))
}

/// Writes and reads the page tokens of one list. A token holds the hash of the filters, because it is a place in the
/// list of these filters only.
pub(in crate::grpc) struct PageTokens {
    list: [u8; 8],
}

impl PageTokens {
    fn new(filters: &[&str]) -> Self {
        let framed = crate::crypto::sealed::length_prefixed(filters.iter().map(|f| f.as_bytes()));
        let hash = Sha256::digest(framed);
        Self { list: std::array::from_fn(|index| hash[index]) }
    }

    /// The token of the page after these parts.
    pub(in crate::grpc) fn write(&self, parts: &[&str]) -> String {
        let json = serde_json::to_vec(parts).unwrap_or_default();
        BASE64_URL_SAFE_NO_PAD.encode([&self.list[..], &json].concat())
    }

    fn read<const N: usize>(
        &self,
        violations: &mut Violations,
        token: &str,
    ) -> Option<[String; N]> {
        if token.is_empty() {
            return None;
        }
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(token).unwrap_or_default();
        let parts = bytes
            .strip_prefix(&self.list)
            .and_then(|json| serde_json::from_slice::<Vec<String>>(json).ok())
            .filter(|parts| parts.iter().all(|part| !part.contains('\0')))
            .and_then(|parts| parts.try_into().ok());
        if parts.is_none() {
            violations.add("page_token", NOT_A_PAGE_TOKEN);
        }
        parts
    }
}
