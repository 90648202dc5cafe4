// The users: whoever logs in has an account, and its name is its subject.

export class Accounts {
  #store;

  /** The name of each account whose subject is another. */
  #names = new Map();

  constructor(store) {
    this.#store = store;
  }

  find(sub) {
    const name = this.#names.get(sub) ?? sub;
    const claims = {
      sub,
      email: `${name}@example.com`,
      email_verified: true,
      name,
      preferred_username: name,
    };
    return { accountId: sub, claims: () => claims };
  }

  /** Gives an account another subject, with all its grants, tokens and sessions. */
  changeSub(from, to) {
    this.#names.set(to, this.#names.get(from) ?? from);
    this.#store.move(from, to);
  }
}
