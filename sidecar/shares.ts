/** Counts what each of many holds, against a bound for each and one for all together. Pure bookkeeping. */
export class Shares {
  readonly #each: number
  readonly #all: number
  readonly #held = new Map<string, number>()
  #total = 0

  constructor(each: number, all = Number.POSITIVE_INFINITY) {
    this.#each = each
    this.#all = all
  }

  of(who: string): number {
    return this.#held.get(who) ?? 0
  }

  /** One more for this one; undefined where a bound is reached, else gives it back (once, however often it is called). */
  take(who: string): (() => void) | undefined {
    const own = this.of(who)
    if (own >= this.#each || this.#total >= this.#all) return undefined
    this.#held.set(who, own + 1)
    this.#total++
    let taken = true
    return () => {
      if (taken) this.#giveBack(who)
      taken = false
    }
  }

  #giveBack(who: string): void {
    this.#total--
    const left = this.of(who) - 1
    if (left === 0) this.#held.delete(who)
    else this.#held.set(who, left)
  }
}
