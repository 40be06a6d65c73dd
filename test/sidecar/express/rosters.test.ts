import { describe, expect, it } from 'vitest'
import { StreamTable } from '../../../sidecar/express/stream-table.ts'
import { type Carried, Roster } from '../../../sidecar/express/surroundings.ts'
import { Seeded } from '../../server/seeded.ts'

class Fake implements Carried {
  place = -1
  seat = -1
  isConnecting = true
  /** How often it gives itself more time. */
  patient: number
  lates = 0
  readonly startedMs: number
  readonly patienceMs = 500
  readonly #onLate: () => void

  constructor(startedMs: number, patient = 0, onLate: () => void = () => undefined) {
    this.startedMs = startedMs
    this.patient = patient
    this.#onLate = onLate
  }

  turn(): 'waiting' {
    return 'waiting'
  }

  late(): boolean {
    this.lates++
    this.#onLate()
    return this.lates > this.patient
  }

  abort(): void {
    throw new Error('nobody aborts here')
  }
}

describe('a roster of connections', () => {
  it('has those that were added and not taken out, whatever the order', () => {
    const roster = new Roster<Fake>()
    const model = new Set<Fake>()
    const seeded = new Seeded(7)
    const all = Array.from({ length: 40 }, () => new Fake(0))
    for (let i = 0; i < 5_000; i++) {
      const one = seeded.pick(all)
      if (model.has(one)) roster.delete(one)
      else roster.add(one)
      if (!model.delete(one)) model.add(one)
      expect(roster.all().length).toBe(model.size)
    }
    expect(new Set(roster.all())).toEqual(model)
    for (const one of all) roster.delete(one)
    for (const one of all) roster.delete(one) // once more is nothing
    expect(roster.all()).toEqual([])
  })

  it('tells who has not connected in time, and again who gives itself more', () => {
    const roster = new Roster<Fake>()
    const [quick, slow, patient] = [new Fake(1_000), new Fake(1_000), new Fake(1_000, 2)]
    for (const one of [quick, slow, patient]) roster.add(one)
    quick.isConnecting = false
    const waits: number[] = []
    for (let now = 1_000; now <= 3_000; now += 250) waits.push(roster.check(now))
    expect([quick.lates, slow.lates >= 1, patient.lates]).toEqual([0, true, 3])
    expect(waits.slice(0, 4).every((ms) => ms === 250)).toBe(true)
    expect(waits.at(-1)).toBe(-1) // nobody is to be told any more
    expect(new Roster().check(0)).toBe(-1)
  })

  it('tells nobody after a time in which this thread did not run', () => {
    const roster = new Roster<Fake>()
    const one = new Fake(0)
    roster.add(one)
    roster.check(10)
    roster.check(5_000)
    expect(one.lates).toBe(0)
    roster.check(5_300)
    expect(one.lates).toBe(1)
  })

  it('leaves alone who was taken out by another that was told', () => {
    const roster = new Roster<Fake>()
    const others = [new Fake(0), new Fake(0), new Fake(0)]
    const first = new Fake(0, 0, () => {
      for (const other of others) roster.delete(other)
    })
    for (const one of [first, ...others]) roster.add(one)
    for (let now = 0; now <= 1_000; now += 250) roster.check(now)
    expect(others.map((o) => o.lates)).toEqual([0, 0, 0])
  })
})

describe('the streams of a lane', () => {
  it('are found by their numbers, like in a Map', () => {
    const table = new StreamTable<string>()
    const model = new Map<number, string>()
    const seeded = new Seeded(11)
    for (let i = 0; i < 20_000; i++) {
      const stream = seeded.below(300)
      if (seeded.below(2) === 0) {
        table.set(stream, `${i}`)
        model.set(stream, `${i}`)
      } else {
        table.delete(stream)
        model.delete(stream)
      }
      const asked = seeded.below(300)
      expect(table.get(asked)).toBe(model.get(asked))
      expect(table.size).toBe(model.size)
    }
    expect(table.clear().sort()).toEqual([...model.values()].sort())
    expect([table.size, table.get(1)]).toEqual([0, undefined])
    table.set(5, 'again')
    expect(table.clear()).toEqual(['again'])
  })
})
