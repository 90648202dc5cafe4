// What has happened at the provider, counted there, so that a test need not believe the broker.

export class Ledger {
  #store;

  #counts = {
    code_exchanges: 0,
    refreshes: 0,
    // Among the token_errors.
    refused_refreshes: 0,
    // Those that ended a token: one that is unknown or dead is answered in the same way, and not counted.
    revocations: 0,
    token_errors: 0,
    // A code or a refresh token came a second time, and the provider ended its whole grant.
    reuse_detections: 0,
    userinfo_calls: 0,
  };

  constructor(store) {
    this.#store = store;
  }

  read() {
    return {
      ...this.#counts,
      living_access_tokens: this.#store.living('AccessToken'),
      living_refresh_tokens: this.#store.living('RefreshToken'),
    };
  }

  watch(provider) {
    const tokenError = ({ oidc }) => {
      this.#count('token_errors', true);
      this.#count('refused_refreshes', oidc.params?.grant_type === 'refresh_token');
    };

    provider.on('grant.success', ({ oidc }) => {
      this.#count('code_exchanges', oidc.params.grant_type === 'authorization_code');
      this.#count('refreshes', oidc.params.grant_type === 'refresh_token');
    });
    provider.on('grant.error', tokenError);
    provider.on('grant.revoked', ({ oidc }) => {
      this.#count('reuse_detections', oidc.route === 'token');
    });
    provider.on('server_error', (ctx, error) => {
      console.error(error);
      if (ctx.oidc.route === 'token') {
        tokenError(ctx);
      }
    });

    // The provider has no events for these.
    provider.use(async (ctx, next) => {
      await next();
      const { route, entities } = ctx.oidc ?? {};
      const token = entities?.AccessToken ?? entities?.RefreshToken;
      this.#count('revocations', route === 'revocation' && ctx.status === 200 && token !== undefined);
      this.#count('userinfo_calls', route === 'userinfo');
    });
  }

  #count(what, happened) {
    if (happened) {
      this.#counts[what] += 1;
    }
  }
}
