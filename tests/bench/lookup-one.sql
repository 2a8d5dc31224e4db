-- SPDX-License-Identifier: GPL-3.0-or-later
--
-- One session, the plain way: instance, fulfillment URL, session → paid, order id.
-- For the candidates without batches.

SELECT paid, order_id
  FROM (SELECT contract.paid, contract.order_id, contract.creation_time, contract.order_serial
          FROM merchant.merchant_contract_terms AS contract
          JOIN merchant.merchant_instances AS instance USING (merchant_serial)
         WHERE instance.merchant_id = $1
           AND contract.fulfillment_url = $2
           AND contract.session_id = $3
         UNION ALL
        SELECT false, offer.order_id, offer.creation_time, offer.order_serial
          FROM merchant.merchant_orders AS offer
          JOIN merchant.merchant_instances AS instance USING (merchant_serial)
         WHERE instance.merchant_id = $1
           AND offer.fulfillment_url = $2
           AND offer.session_id = $3) AS match
 ORDER BY paid DESC, creation_time DESC, order_serial DESC
 LIMIT 1
