/**
 * The users of a lane's streams, by stream. Not in the Map itself, which holds their places only: a Map makes a new table
 * each time that so many came as it has room for, and what an old one held would be kept until the next collection of all.
 */
export class StreamTable<T> {
  readonly #places = new Map<number, number>()
  readonly #users: (T | undefined)[] = []
  readonly #free: number[] = []

  get size(): number {
    return this.#places.size
  }

  get(stream: number): T | undefined {
    const place = this.#places.get(stream)
    return place === undefined ? undefined : this.#users[place]
  }

  set(stream: number, user: T): void {
    let place = this.#places.get(stream)
    if (place === undefined) {
      place = this.#free.pop() ?? this.#users.length
      this.#places.set(stream, place)
    }
    this.#users[place] = user
  }

  delete(stream: number): void {
    const place = this.#places.get(stream)
    if (place === undefined) return
    this.#places.delete(stream)
    this.#users[place] = undefined
    this.#free.push(place)
  }

  /** Takes all of them out. */
  clear(): T[] {
    const users = this.#users.filter((user) => user !== undefined)
    this.#places.clear()
    this.#users.length = 0
    this.#free.length = 0
    return users
  }
}
