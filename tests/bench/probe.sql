-- SPDX-License-Identifier: GPL-3.0-or-later
--
-- The index probed for many keys, and nothing else: $1 merchant serials, $2 fulfillment URLs, $3 session ids.
-- What the database has to do for a paid session in any case.

SELECT k.n, contract.paid, contract.order_id
  FROM unnest($1::bigint[], $2::text[], $3::text[]) WITH ORDINALITY AS k (serial, url, session, n)
  JOIN merchant.merchant_contract_terms AS contract
    ON contract.merchant_serial = k.serial
   AND contract.fulfillment_url = k.url
   AND contract.session_id = k.session
