/**
 * How long connections may wait for the first one to their destination to show them the way, in ms: what a lane to a far peer takes,
 * or one on a busy machine. Those that give up stay on a session, where bulk costs more and keeps more in memory.
 */
const followMs = 1_500
const maxPioneers = 1_000

/** Destinations that are being connected to for the first time, by name: whether the worker can carry what follows. */
export class Pioneers {
  readonly #byName = new Map<string, PromiseWithResolvers<boolean>>()

  /** What came of the one that is under way; undefined when there is none. */
  of(name: string): Promise<boolean> | undefined {
    return this.#byName.get(name)?.promise
  }

  /** False when there are too many. */
  add(name: string): boolean {
    if (this.#byName.size >= maxPioneers) return false
    const pioneer = Promise.withResolvers<boolean>()
    this.#byName.set(name, pioneer)
    const timer = setTimeout(() => pioneer.resolve(false), followMs)
    void pioneer.promise.then(() => {
      clearTimeout(timer)
      this.#byName.delete(name)
    })
    return true
  }

  settle(name: string, mayFollow: boolean): void {
    this.#byName.get(name)?.resolve(mayFollow)
  }
}
