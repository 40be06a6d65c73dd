// Loads what the lab's processes load later and ends, so that Node's compile cache holds it (see lab.ts).
import { Worker } from 'node:worker_threads'

await import('../../sidecar/sidecar.ts')
await import('../../server/server.ts')
await import('../../sidecar/express/switchboard.ts')
for (const program of [
  'sidecar/express/worker.ts',
  'sidecar/shared/pump/worker.ts',
  'server/tls/worker.ts',
]) {
  // Without what it needs a worker ends with an error once it is loaded, or waits.
  const worker = new Worker(new URL(`../../${program}`, import.meta.url))
  worker.on('error', () => undefined)
  await new Promise((resolve) => {
    worker.once('exit', resolve)
    setTimeout(resolve, 2_000)
  })
  await worker.terminate()
}
process.exit(0)
