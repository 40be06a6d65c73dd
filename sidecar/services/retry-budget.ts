/** Each new connection of a service earns it so much of a retry, and each second so much. */
const perConnection = 0.2
const perSecond = 2
/** Retries that may be saved up, and that a service has at first. */
const most = 10
/** Services with a budget; the least recently used go first. */
const maxServices = 2_000

/** Bounds the retries of each service by a share of its connections, so that a dead one does not multiply its load. */
export class RetryBudget {
  readonly #now: () => number
  readonly #services = new Map<string, { left: number; at: number }>()

  constructor(now: () => number = () => performance.now()) {
    this.#now = now
  }

  onConnection(service: string): void {
    this.#add(service, perConnection)
  }

  /** 0 when the retry was granted, else how long until the next one may be, in ms. */
  take(service: string): number {
    const budget = this.#add(service, 0)
    if (budget.left < 1) return Math.ceil(((1 - budget.left) / perSecond) * 1_000)
    budget.left--
    return 0
  }

  #add(service: string, earned: number) {
    const now = this.#now()
    const { left, at } = this.#services.get(service) ?? { left: most, at: now }
    const budget = { left: Math.min(most, left + earned + ((now - at) / 1_000) * perSecond), at: now }
    this.#services.delete(service)
    this.#services.set(service, budget)
    if (this.#services.size > maxServices) this.#services.delete(this.#services.keys().next().value ?? '')
    return budget
  }
}
