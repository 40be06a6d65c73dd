import type { BenchCase, Trial } from '../case.ts'
import { limit, quantile } from '../figures.ts'
import { iperf } from '../load/tools.ts'
import { startApps } from './tunnel.ts'

const seconds = 10
/** A small request beside the bulk may take so much longer than the round trip, in ms. */
const extraMs = 20

function far(rttMs: number, megabits: number): BenchCase {
  return {
    name: `rtt-${rttMs}`,
    what: `one relayed stream at ${rttMs} ms RTT, and small requests to the same peer beside it`,
    peerName: limit,
    rttMs,
    maxRounds: 2,
    figures: [
      { metric: 'speed', unit: 'Mbit/s', better: 'higher', least: 1 },
      { metric: 'small-p99', unit: 'ms', better: 'lower', least: 1 },
    ],
    async prepare(rig): Promise<Trial> {
      await startApps(rig, 'tcp-echo-cloud')
      return {
        async ours() {
          const bulk = iperf(rig.lab, '10.96.0.22', 5_201, 'up', 'client', seconds)
          await new Promise((resolve) => setTimeout(resolve, 2_000)) // the bulk is under way
          const pings = rig.script(
            'client',
            'test/bench/load/pinger.ts',
            'tcp-echo-cloud',
            '2701',
            String(seconds - 4),
          )
          const times = await pings.next<number[]>()
          return { speed: (await bulk).gigabits * 1e3, 'small-p99': quantile(times, 0.99) }
        },
        limits: { speed: megabits, 'small-p99': rttMs + extraMs },
      }
    },
  }
}

export const rttCases: readonly BenchCase[] = [far(40, 500), far(100, 250)]
