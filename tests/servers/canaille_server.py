"""An authorization server that is not ours: Canaille, with one client and one user.

    python canaille_server.py '{"redirect_uris": [...], "client_id": "...", "client_secret": "...",
                                "access_token_ttl": 3600,
                                "token_endpoint_auth_method": "client_secret_basic"}'

The user is alice, with the password "correct horse battery".

Prints one line of JSON once it listens: {"issuer": "...", "control": "..."}. GET <control>/ledger
answers with what has happened here, counted, in the names of oidc-provider.mjs.
Ends on SIGTERM, and with its standard input, so that it never outlives the test that started it.
"""

import json
import secrets
import signal
import socket
import sys
import tempfile
import threading

from authlib.integrations.flask_oauth2 import token_revoked
from canaille import create_app
from canaille.app import models
from canaille.oidc import provider
from flask import request
from joserfc.jwk import RSAKey
from werkzeug.serving import make_server

SCOPES = ["openid", "profile", "email"]


def configuration(host: str, folder: str, access_token_ttl: int) -> dict:
    key = RSAKey.generate_key(2048, auto_kid=True)
    return {
        "SERVER_NAME": host,
        "PREFERRED_URL_SCHEME": "http",
        "SECRET_KEY": secrets.token_urlsafe(),
        "DEBUG": False,
        # By grant type.
        "OAUTH2_TOKEN_EXPIRES_IN": {
            "authorization_code": access_token_ttl,
            "refresh_token": access_token_ttl,
        },
        # Left out, Canaille would look for a mail server on this machine.
        "CANAILLE": {"DATABASE": "sql", "SMTP": None},
        "CANAILLE_SQL": {"DATABASE_URI": f"sqlite:///{folder}/canaille.sqlite"},
        "CANAILLE_OIDC": {"ACTIVE_JWKS": [key.as_dict(private=True)]},
    }


def add_client_and_user(app, wanted: dict) -> None:
    client = models.Client(
        client_id=wanted["client_id"],
        client_secret=wanted["client_secret"],
        client_name="Token broker",
        redirect_uris=wanted["redirect_uris"],
        token_endpoint_auth_method=wanted.get("token_endpoint_auth_method", "client_secret_basic"),
        grant_types=["authorization_code", "refresh_token"],
        response_types=["code"],
        scope=SCOPES,
        # The default of OpenID Connect; that of Canaille would be RS512.
        id_token_signed_response_alg="RS256",
    )
    app.backend.save(client)
    # The audience of its tokens.
    client.audience = [client]
    app.backend.save(client)
    app.backend.save(
        models.User(
            user_name="alice",
            password="correct horse battery",
            formatted_name="Alice Example",
            given_name="Alice",
            family_name="Example",
            emails=["alice@example.com"],
        )
    )


def keep_ledger(app) -> None:
    counts = {
        "code_exchanges": 0,
        "refreshes": 0,
        "refused_refreshes": 0,
        "revocations": 0,
        "token_errors": 0,
        "userinfo_calls": 0,
    }

    @app.after_request
    def count(response):
        grant_type = request.form.get("grant_type")
        match request.path, response.status_code:
            case "/oauth/token", 200:
                counts["code_exchanges"] += grant_type == "authorization_code"
                counts["refreshes"] += grant_type == "refresh_token"
            case "/oauth/token", _:
                counts["token_errors"] += 1
                counts["refused_refreshes"] += grant_type == "refresh_token"
            case "/oauth/userinfo", _:
                counts["userinfo_calls"] += 1
        return response

    # There is no signal for a token that it does not know; for one that is dead already, there is.
    def count_revocation(_server, **_):
        counts["revocations"] += 1

    token_revoked.connect(count_revocation, weak=False)

    @app.get("/control/ledger")
    def ledger():
        # An access token and its refresh token are one row, and die together.
        living = sum(token.is_refresh_token_active() for token in app.backend.query(models.Token))
        return {**counts, "living_access_tokens": living, "living_refresh_tokens": living}


def main() -> None:
    wanted = json.loads(sys.argv[1])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    # Bound before everything else, for the issuer contains the port.
    listener = socket.create_server(("127.0.0.1", 0))
    host = f"127.0.0.1:{listener.getsockname()[1]}"
    # Canaille's own access tokens are JWTs without a jti: a refresh in the second of the exchange
    # would make the same one again, which its database refuses.
    provider.generate_access_token = lambda **_: secrets.token_urlsafe(32)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        app = create_app(configuration(host, folder, wanted["access_token_ttl"]))
        with app.app_context(), app.backend.session():
            add_client_and_user(app, wanted)
        keep_ledger(app)
        # One request at a time, so that what is counted comes in an order.
        server = make_server("127.0.0.1", 0, app, fd=listener.fileno())
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://{host}"
        print(json.dumps({"issuer": base, "control": f"{base}/control"}), flush=True)
        sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
