import { workerData } from 'node:worker_threads'
import { PumpWorker, report } from '#shared/pump/orders.ts'
import type { ExpressOrder } from './messages.ts'
import { Switchboard } from './switchboard.ts'

const worker = new PumpWorker(workerData)
const switchboard = new Switchboard(worker, workerData.guest, (told) =>
  report({ type: 'guest', report: told }),
)
worker.host((order) => switchboard.obey(order as ExpressOrder))
worker.run()
