// What the provider stores, in memory: an adapter as example/my_adapter.js of the library describes it. Its
// own one drops the oldest of 1,000 entries; here nothing goes before it expires.

export class Store {
  /** By model and ID: the payload, and when it expires in seconds since 1970. */
  #entries = new Map();

  /** The store of one model, as the provider asks for it. */
  adapter = (model) => new Adapter(model, this.#entries);

  /** What one model has that works still. */
  living(model) {
    return [...this.#entries.values()].filter(
      (entry) => entry.model === model && !expired(entry) && !entry.payload.consumed,
    ).length;
  }

  /** Gives everything that one account has to another. */
  move(from, to) {
    for (const { payload } of this.#entries.values()) {
      if (payload.accountId === from) {
        payload.accountId = to;
      }
    }
  }
}

class Adapter {
  #model;

  #entries;

  constructor(model, entries) {
    this.#model = model;
    this.#entries = entries;
  }

  async upsert(id, payload, expiresIn) {
    const expires = expiresIn === undefined ? Infinity : now() + expiresIn;
    this.#entries.set(this.#key(id), { model: this.#model, payload, expires });
  }

  async find(id) {
    const entry = this.#entries.get(this.#key(id));
    return entry && !expired(entry) ? entry.payload : undefined;
  }

  async findByUid(uid) {
    return this.#search('uid', uid)[0]?.[1].payload;
  }

  async findByUserCode(userCode) {
    return this.#search('userCode', userCode)[0]?.[1].payload;
  }

  // A consumed token stays, so that its reuse is told from a token that never was.
  async consume(id) {
    this.#entries.get(this.#key(id)).payload.consumed = now();
  }

  async destroy(id) {
    this.#entries.delete(this.#key(id));
  }

  async revokeByGrantId(grantId) {
    for (const [key] of this.#search('grantId', grantId)) {
      this.#entries.delete(key);
    }
  }

  #key(id) {
    return `${this.#model}:${id}`;
  }

  #search(field, value) {
    return [...this.#entries].filter(
      ([, entry]) => entry.model === this.#model && entry.payload[field] === value && !expired(entry),
    );
  }
}

function expired({ expires }) {
  return expires <= now();
}

function now() {
  return Math.floor(Date.now() / 1000);
}
